"""A replica says whether it is well: its engine moves, and it is not unready for long."""

from __future__ import annotations

import pytest

from langchain_rwkv_state.ray import replica
from langchain_rwkv_state.ray.replica import Health, Replica, Signed
from langchain_rwkv_state.serve import ServeSettings, make_app
from langchain_rwkv_state.serve.settings import ServeError
from tests.helpers.served_tenants import ModellessTenants


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(clock)


def test_an_engine_that_moves_or_has_nothing_to_do_is_well(health, clock):
    for clock.now in range(0, 1000, 100):
        health.engine(int(clock.now), 3)
    for clock.now in range(1000, 2000, 100):
        health.engine(900, 0)


def test_an_engine_that_stands_still_with_requests_is_not(health, clock):
    health.engine(5, 1)
    clock.now = 119
    health.engine(5, 1)
    clock.now = 121
    with pytest.raises(ServeError, match="1 requests and made no step for 121 s"):
        health.engine(5, 1)


def test_a_rest_before_a_request_does_not_count(health, clock):
    health.engine(5, 0)
    clock.now = 500
    health.engine(5, 0)
    clock.now = 501
    health.engine(5, 1)


def test_a_store_may_be_away_for_a_moment_and_is_told_of_once(health, clock, caplog):
    health.ready(None)
    clock.now = 30
    for _ in range(3):
        health.ready("no Redis")
    assert caplog.text.count("no Redis") == 1
    clock.now = 59
    health.ready(None)
    clock.now = 118
    health.ready("no Redis")
    assert caplog.text.count("no Redis") == 2


def test_a_replica_that_is_not_ready_for_a_minute_is_to_be_replaced(health, clock):
    clock.now = 61
    with pytest.raises(ServeError, match=r"not ready for 61 s \(no Redis\)"):
        health.ready("no Redis")


async def test_a_replica_asks_its_own_server_whether_it_takes_requests(
    monkeypatch, tmp_path, clock
):
    settings = ServeSettings(model=str(tmp_path / "none.pth"), store=str(tmp_path))
    app = make_app(settings, tenants=ModellessTenants(settings))
    monkeypatch.setattr(replica, "_machines", lambda: 1)
    monkeypatch.setattr(replica, "_own_name", lambda: "abc")
    monkeypatch.setattr(replica, "make_app", lambda _: app)
    monkeypatch.setattr(replica, "Health", lambda: Health(clock))
    served = Replica(settings)
    await served.check_health()
    app.state.drain.begin()
    clock.now = 61
    with pytest.raises(ServeError, match="The server is ending"):
        await served.check_health()


async def test_an_answer_says_which_replica_gave_it():
    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    sent = []

    async def send(message):
        sent.append(message)

    await Signed(answers, "abc")({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert sent[0]["headers"] == [(b"a", b"b"), (b"x-served-by", b"abc")]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
