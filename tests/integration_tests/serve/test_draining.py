"""How a server ends, and what it says meanwhile: to whoever is being answered, and who comes."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from langchain_rwkv_state.serve import ServeSettings, make_app
from langchain_rwkv_state.serve.running import Server
from tests.helpers.server import served_in_a_thread

PATIENCE = 60.0
Serve = Callable[..., AbstractContextManager[tuple[str, Server]]]


class Stream:
    """A response that is read on a thread, event by event.

    Attributes:
        began: Set once a piece of the answer is there.
        events: What came, each with its type.
    """

    def __init__(self, url: str, max_output_tokens: int) -> None:
        self.began = threading.Event()
        self.events: list[dict] = []
        self._url = url
        self._asked = {"model": "model", "input": "Hello.", "stream": True}
        self._asked["max_output_tokens"] = max_output_tokens
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream(
            "POST", f"{self._url}/v1/responses", json=self._asked, timeout=PATIENCE
        ) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line.removeprefix("data: ")))
                    if self.events[-1]["type"] == "response.output_text.delta":
                        self.began.set()

    @property
    def runs(self) -> bool:
        """Whether its end was not heard yet."""
        return self._thread.is_alive()

    def end(self) -> dict:
        """Waits for the end; returns the last event."""
        self._thread.join(PATIENCE)
        assert not self.runs
        return self.events[-1]


@pytest.fixture
def serve(tiny_model, tmp_path) -> Serve:
    """Serves a model whose answers are as long as they may be: ``serve(drain_seconds=1)``."""

    def served(**settings: Any) -> AbstractContextManager[tuple[str, Server]]:
        # Without penalties a random model says the same over and over, and never its end.
        greedy = dict.fromkeys(("temperature", "presence_penalty", "frequency_penalty"), 0)
        settings = {"name": "model", "strategy": "cpu fp32", "options": greedy, **settings}
        settings["store"] = str(tmp_path / "states")
        return served_in_a_thread(make_app(ServeSettings(str(tiny_model(7)), **settings)))

    return served


def streams(url: str, count: int, tokens: int) -> list[Stream]:
    begun = [Stream(url, tokens) for _ in range(count)]
    for stream in begun:
        assert stream.began.wait(PATIENCE)
    return begun


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def test_what_runs_ends_and_what_comes_is_told_to_try_again(serve):
    with serve() as (url, server), httpx.Client(base_url=url) as client:
        assert client.get("/ready").status_code == 200
        running = streams(url, 2, 1500)
        server.handle_exit(signal.SIGTERM, None)
        until(lambda: client.get("/ready").status_code == 503)
        assert client.get("/health").status_code == 200
        refused = client.post("/v1/responses", json={"model": "model", "input": "Hello."})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert all(stream.runs for stream in running), "it was too fast to be seen"
        assert [stream.end()["type"] for stream in running] == ["response.incomplete"] * 2
        until(lambda: server.should_exit)
        assert not server.cut_off


def test_what_does_not_end_in_time_ends_with_the_protocols_error(serve):
    with serve(drain_seconds=0.05) as (url, server):
        running = streams(url, 2, 100_000)
        server.handle_exit(signal.SIGTERM, None)
        for stream in running:
            last = stream.end()
            assert last["type"] == "response.failed"
            assert "closed" in last["response"]["error"]["message"]
        text = server.config.app.state.metrics.text().decode()
        assert 'rwkv_state_broken_streams_total{error="EngineError"} 2.0' in text
        until(lambda: server.should_exit)
        assert not server.cut_off


def test_a_second_signal_does_not_wait(serve):
    with serve(drain_seconds=3600) as (url, server):
        running = streams(url, 1, 100_000)
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        assert running[0].end()["type"] == "response.failed"
        until(lambda: server.should_exit)
        assert server.cut_off


@pytest.fixture
def url(serve) -> Iterator[str]:
    with serve() as (address, _):
        yield address


def test_a_client_that_leaves_frees_its_place(url):
    asked = {"model": "model", "input": "Hello.", "stream": True, "max_output_tokens": 100_000}
    body = json.dumps(asked).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        assert figure(url, "engine_active") == 1
    until(lambda: figure(url, "engine_active") == 0)
    assert figure(url, "requests_in_flight") == 1, "that which asks"


def figure(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(f"rwkv_state_{name} "):
            return float(line.split()[-1])
    raise AssertionError("no such figure")
