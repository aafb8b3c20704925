"""Several processes that serve: one killed, none of what was acknowledged lost, and the end."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.helpers.server import served_by_command

pytestmark = [pytest.mark.posix, pytest.mark.slow]
PATIENCE = 60.0


class Talk(threading.Thread):
    """A conversation by `previous_response_id`; a turn that is lost is asked again.

    Attributes:
        acknowledged: The ids of the turns that were answered, in order.
        lost: How many turns had no answer.
        wrong: What was answered that should not have been.
    """

    def __init__(self, url: str, over: threading.Event) -> None:
        super().__init__()
        self.acknowledged: list[str] = []
        self.lost = 0
        self.wrong: list[str] = []
        self._url = url
        self._over = over

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE) as client:
            while not self._over.is_set():
                asked = {"model": "demo", "input": "Hello.", "max_output_tokens": 3}
                if self.acknowledged:
                    asked["previous_response_id"] = self.acknowledged[-1]
                try:
                    reply = client.post("/v1/responses", json=asked)
                except httpx.TransportError:
                    self.lost += 1
                    continue
                if reply.status_code == 200:
                    self.acknowledged.append(reply.json()["id"])
                elif reply.status_code != 503:
                    self.wrong.append(reply.text)


def figure(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"rwkv_state_{name}"))


def test_a_killed_worker_is_replaced_and_loses_nothing_that_was_acknowledged(tmp_path):
    words = ["--store", str(tmp_path / "states"), "--workers", "2", "--log-level", "warning"]
    over = threading.Event()
    with served_by_command(*words) as (url, process), httpx.Client(base_url=url) as client:
        talks = [Talk(url, over) for _ in range(4)]
        for talk in talks:
            talk.start()
        looked_after = psutil.Process(process.pid)
        killed = set()
        for _ in range(2):
            deadline = time.monotonic() + PATIENCE
            known = [len(talk.acknowledged) for talk in talks]
            while (
                len(looked_after.children()) < 2
                or any(len(t.acknowledged) < n + 2 for t, n in zip(talks, known, strict=True))
            ) and time.monotonic() < deadline:
                time.sleep(0.01)
            killed.add(looked_after.children()[0].pid)
            os.kill(looked_after.children()[0].pid, signal.SIGKILL)
        while figure(client, "worker_restarts_total") < 2:
            time.sleep(0.05)
        over.set()
        for talk in talks:
            talk.join(PATIENCE)
        assert not [talk.wrong for talk in talks if talk.wrong]
        assert sum(talk.lost for talk in talks) <= 2 * len(talks), "only what a dead one held"
        assert not killed & {each.pid for each in looked_after.children()}
        for each in [each for talk in talks for each in talk.acknowledged[-3:]]:
            asked = {"model": "demo", "input": "Hello.", "max_output_tokens": 1}
            reply = client.post("/v1/responses", json={**asked, "previous_response_id": each})
            assert reply.status_code == 200, reply.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_workers_end_when_nobody_looks_after_them_any_more(tmp_path):
    words = ["--store", str(tmp_path / "states"), "--workers", "2", "--log-level", "error"]
    with served_by_command(*words) as (_, process):
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait(PATIENCE)
        assert not psutil.wait_procs(workers, PATIENCE)[1]
