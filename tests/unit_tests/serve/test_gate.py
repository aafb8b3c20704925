"""What every request passes: keys, limits, bodies, draining, metrics."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException

from langchain_rwkv_state.serve import ServeSettings, gate, make_app
from langchain_rwkv_state.serve.drain import Drain
from langchain_rwkv_state.serve.gate import Gate
from langchain_rwkv_state.serve.metrics import Metrics
from langchain_rwkv_state.serve.settings import Limits, ServeError
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.served_tenants import KEYS, ModellessTenants, bearer, write_keys


class App:
    """An application that answers when it is told to.

    Attributes:
        asked: Who asked, in order.
        silent: Whether it says nothing, as to a client that left.
        go_on: Set to let the answers go.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent = False
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for _ in range(2):
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
            return
        if "state" in scope and "tenant" in scope["state"]:
            self.asked.append(scope["state"]["tenant"].name)
        if self.silent:
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"b"})


class Gated:
    """An application behind a gate, and what stands beside it."""

    def __init__(self, tmp_path, limits="", **settings):
        self.app = App()
        self.metrics, self.drain = Metrics(), Drain()
        known = ServeSettings(api_key_file=write_keys(tmp_path, limits), **settings)
        self.tenants = ModellessTenants(known, self.metrics)
        gate = Gate(self.app, self.tenants, self.drain, self.metrics)
        self.client = AsgiClient(gate, bearer("alice"))


async def test_who_brings_no_key_or_a_wrong_one_is_refused_as_openai_refuses(tmp_path):
    gated = Gated(tmp_path)
    async with AsgiClient(gated.client._app) as client:
        for headers in (
            {},
            {"authorization": "Bearer nothing"},
            {"authorization": f"Basic {KEYS['alice']}"},
            {"authorization": KEYS["alice"]},
            {"x-api-key": KEYS["alice"]},
        ):
            reply = await client.post("/v1/chat/completions", {}, headers=headers)
            assert reply.status == 401
            assert reply.error["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
    assert not gated.app.asked


async def test_a_key_says_who_asks(tmp_path):
    gated = Gated(tmp_path)
    async with gated.client as client:
        assert (await client.get("/any")).status == 200
        assert (await client.get("/any", headers=bearer("bob"))).status == 200
    assert gated.app.asked == ["alice", "bob"]


async def test_a_body_that_says_it_is_too_large_is_not_read(tmp_path):
    gated = Gated(tmp_path, "body=10B")
    async with gated.client as client:
        reply = await client.post("/any", body=b"x" * 11)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert reply.headers["connection"] == "close"
    assert not gated.app.asked


async def test_a_body_that_says_nothing_is_counted_as_it_is_read(tmp_path):
    settings = ServeSettings(api_key_file=write_keys(tmp_path, "body=10B"))
    app = make_app(settings, tenants=ModellessTenants(settings))
    async with AsgiClient(app, bearer("alice")) as client:
        reply = await client.post("/v1/responses", body=b"x" * 11, headers={"content-length": "5"})
    assert reply.status == 413
    assert "10 bytes" in reply.error["message"]


async def test_as_many_requests_run_at_once_as_a_key_may_have_and_others_do_not_count(tmp_path):
    gated = Gated(tmp_path, "requests=1")
    gated.app.go_on.clear()
    async with gated.client as client:
        first = await client.send("GET", "/any").start()
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        reply = await client.get("/any")
        assert reply.status == 429
        assert reply.headers["retry-after"] == "1"
        assert reply.error["code"] == "rate_limit_exceeded"
        other = await client.send("GET", "/any", headers=bearer("bob")).start()
        assert other.status == 200
        gated.app.go_on.set()
        await asyncio.gather(first.task, other.task)
        assert (await client.get("/any")).status == 200
    assert gated.drain.running == 0


async def test_tokens_that_an_answer_cost_are_those_of_its_key(tmp_path):
    gated = Gated(tmp_path, "tokens_per_minute=100")
    gated.tenants.account("alice").spent(read=90, cached=0, answered=10)
    async with gated.client as client:
        reply = await client.get("/any")
        assert (reply.status, reply.error["type"]) == (429, "tokens")
        assert int(reply.headers["retry-after"]) >= 1
        assert (await client.get("/any", headers=bearer("bob"))).status == 200


async def test_while_it_drains_what_runs_ends_and_what_comes_is_sent_away(tmp_path):
    gated = Gated(tmp_path)
    gated.app.go_on.clear()
    async with gated.client as client:
        running = await client.send("GET", "/any").start()
        gated.drain.begin()
        reply = await client.get("/any")
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
        assert reply.headers["retry-after"] == "5"
        assert not await gated.drain.idle_within(0)
        gated.app.go_on.set()
        assert b"".join([piece async for piece in running.pieces()]) == b"ab"
        assert await gated.drain.idle_within(5)


async def test_a_store_that_cannot_be_opened_is_a_503_and_is_opened_at_the_next_try(tmp_path):
    gated = Gated(tmp_path)
    gated.tenants.failures = 1
    async with gated.client as client:
        reply = await client.get("/any")
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
        assert (await client.get("/any")).status == 200
    assert gated.drain.running == 0


async def test_what_was_done_is_counted_by_route_and_status(tmp_path):
    settings = ServeSettings(api_key_file=write_keys(tmp_path))
    metrics = Metrics()
    app = make_app(settings, tenants=ModellessTenants(settings, metrics))
    async with AsgiClient(app, bearer("metrics")) as client:
        await client.get("/v1/models", headers=bearer("alice"))
        await client.get("/v1/models/other", headers=bearer("alice"))
        await client.get("/v1/../secret", headers=bearer("alice"))
        await client.get("/v1/models", headers={"authorization": "Bearer x"})
        reply = await client.get("/metrics")
    text = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'rwkv_state_requests_total{route="/v1/models",status="200"} 1.0',
        'rwkv_state_requests_total{route="/v1/models/{name:path}",status="404"} 1.0',
        'rwkv_state_requests_total{route="other",status="404"} 1.0',
        'rwkv_state_requests_total{route="other",status="401"} 1.0',
        'rwkv_state_refused_total{reason="key",tenant=""} 1.0',
        'rwkv_state_first_byte_seconds_count{route="/v1/models"} 1.0',
        "rwkv_state_draining 0.0",
    ):
        assert line in text
    assert "secret" not in text, "what a client may choose freely is no label"


async def test_a_client_that_left_before_an_answer_is_counted_as_one(tmp_path):
    gated = Gated(tmp_path)
    gated.app.silent = True
    async with gated.client as client:
        await client.send("GET", "/any").task
    assert 'status="499"} 1.0' in gated.metrics.text().decode()


async def test_figures_are_for_the_key_of_metrics_and_that_key_for_nothing_else(tmp_path):
    gated = Gated(tmp_path)
    async with gated.client as client:
        assert (await client.get("/metrics")).status == 403
        assert (await client.get("/metrics", headers={"authorization": "x"})).status == 401
        assert (await client.get("/metrics", headers=bearer("metrics"))).status == 200
        assert (await client.get("/v1/models", headers=bearer("metrics"))).status == 403
    assert not gated.app.asked


async def test_health_and_readiness_are_told_without_a_key(tmp_path):
    settings = ServeSettings(api_key_file=write_keys(tmp_path))
    tenants = ModellessTenants(settings)
    app = make_app(settings, tenants=tenants)
    async with AsgiClient(app) as client:
        assert (await client.get("/health")).status == 200
        assert (await client.get("/ready")).json() == {"status": "ready"}
        app.state.drain.begin()
        assert (await client.get("/health")).status == 200
        reply = await client.get("/ready")
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")


async def test_a_server_whose_store_is_away_is_not_ready_and_does_not_say_where_it_is(tmp_path):
    settings = ServeSettings(api_key_file=write_keys(tmp_path))
    tenants = ModellessTenants(settings)
    tenants.failures = 1
    app = make_app(settings, tenants=tenants)
    async with AsgiClient(app) as client:
        reply = await client.get("/ready")
        assert reply.status == 503
        assert reply.json()["reason"] == "The store cannot be used (StoreError)."
        assert (await client.get("/ready")).status == 200
    assert 'store_errors_total{error="StoreError"} 1.0' in app.state.metrics.text().decode()


async def test_a_store_that_could_not_be_opened_is_counted_and_closed_in_its_time_later(tmp_path):
    gated = Gated(tmp_path, idle_seconds=0.01)
    gated.tenants.failures = 1
    async with gated.client as client:
        reply = await client.get("/any")
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
        assert (await client.get("/any")).status == 200
        async with asyncio.timeout(10):
            while gated.tenants.closed != ["alice"]:  # noqa: ASYNC110 # nobody tells of it
                await asyncio.sleep(0.001)
    assert 'store_errors_total{error="StoreError"} 1.0' in gated.metrics.text().decode()


async def test_settings_that_are_wrong_are_no_fault_of_who_asks_nor_told_to_them(
    tmp_path, monkeypatch
):
    gated = Gated(tmp_path)

    def opened(name):
        raise ValueError("redis://secret is no store.")

    monkeypatch.setattr(gated.tenants, "_opened", opened)
    async with gated.client as client:
        reply = await client.get("/any")
    assert reply.status == 500
    assert b"secret" not in reply.body


@pytest.mark.parametrize("limits", [{"requests": 0}, {"tokens_per_minute": -1}, {"body_bytes": 0}])
def test_a_limit_that_lets_nothing_in_is_refused(limits):
    with pytest.raises(ServeError, match="from 1 on"):
        Limits(**limits)


class HalfSent:
    """A request of which one byte comes, and no more."""

    def __init__(self, tmp_path):
        self.drain = Drain()
        metrics = Metrics()
        tenants = ModellessTenants(ServeSettings(api_key_file=write_keys(tmp_path)), metrics)
        self._gate = Gate(self._read, tenants, self.drain, metrics)
        self._sent = False
        self.reading = asyncio.Event()

    async def _read(self, scope, receive, send):
        try:
            while (await receive()).get("more_body"):
                pass
        except HTTPException as error:  # as FastAPI does
            start = {"type": "http.response.start", "status": error.status_code, "headers": []}
            await send(start)

    async def _receive(self):
        if self._sent:
            self.reading.set()
            await asyncio.Event().wait()
        self._sent = True
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def ask(self):
        """Returns the status that the waiting ends with."""
        key = [(name.lower().encode(), each.encode()) for name, each in bearer("alice").items()]
        scope = {"type": "http", "path": "/v1/chat/completions", "headers": key}

        async def send(message):
            found.append(message)

        found: list = []
        async with asyncio.timeout(10):
            await self._gate(scope, self._receive, send)
        return found[0]["status"]


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_BODY_SECONDS", 0.02)
    half = HalfSent(tmp_path)
    assert await half.ask() == 408
    assert half.drain.running == 0


async def test_who_is_still_sending_when_the_server_ends_may_try_again(tmp_path):
    half = HalfSent(tmp_path)
    asked = asyncio.ensure_future(half.ask())
    await half.reading.wait()
    half.drain.begin()
    half.drain.cut()
    assert await asked == 503
