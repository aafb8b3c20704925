"""Kills replicas of Ray Serve under load, and checks that nothing that was acknowledged is lost.

Clients hold conversations, some by the last response's id and some by the conversation's own. What
a turn stands on says whether the one before is in it, once: it counts the tokens of all that was
said. The easy mistake is to call a turn lost that was never answered: it may be there or not.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from langchain_rwkv_state.store.urls import open_store
from tests.helpers.ray_cluster import Cluster

_LOG_MAX = 90  # turns of a conversation: the store's log has the last hundred
_PAUSE_SECONDS = 0.2  # as people do: replicas start beside the others, on the same cores
_SAID = "What is my name?"


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        kills: How many replicas were killed.
        acknowledged: Turns that were answered.
        conversations: In which they were.
        unanswered: Requests that ended without an answer, by what was said of them.
        lost: Sentences about acknowledged turns that are not there.
        twice: Sentences about turns that are there more often than they were asked for.
        back_seconds: From each kill until all replicas had given an answer.
    """

    kills: int = 0
    acknowledged: int = 0
    conversations: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    back_seconds: list[float] = field(default_factory=list)


def campaign(
    cluster: Cluster,
    store: str,
    *,
    minutes: float,
    every_seconds: float = 30.0,
    replicas: int = 3,
    clients: int = 6,
) -> Outcome:
    """Talks, and kills a replica time and again.

    Args:
        cluster: What serves, without keys.
        store: The URL of its store.
        minutes: For how long.
        every_seconds: Between two kills.
        replicas: How many there are.
        clients: How many talk at once.
    """
    load = _Load(cluster, store)
    threads = [threading.Thread(target=load.talk, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    try:
        while time.monotonic() - began < 60 * minutes and not load.over.wait(every_seconds):
            load.kill(replicas)
        load.over.wait(5)
    finally:
        load.over.set()
        for thread in threads:
            thread.join(60)
    load.look()
    return load.found


class _Load:
    def __init__(self, cluster: Cluster, store: str) -> None:
        self.found = Outcome()
        self.over = threading.Event()
        self._cluster = cluster
        self._store = store
        self._lock = threading.Lock()
        self._served: set[str] = set()  # by which replicas, since the last kill
        self._counts: dict[str, tuple[int, int]] = {}  # turns answered, and not, by conversation

    def talk(self, number: int) -> None:
        """Holds one conversation after another until it is over."""
        turn = 0
        while not self.over.is_set():
            turn += 1
            (self._by_id if number % 2 else self._by_name)(f"client{number}-{turn}")

    def kill(self, replicas: int) -> None:
        """Kills a replica, and waits until all are there again."""
        there = self._cluster.replicas()
        victim = sorted(there)[self.found.kills % len(there)]
        with self._lock:
            known = set(self._served)
            self._served.clear()
        there[victim].kill()
        at = time.monotonic()
        self.found.kills += 1
        while time.monotonic() - at < 120:
            with self._lock:
                if len(self._served) >= replicas and self._served - known:
                    break
            self.over.wait(0.1)
        self.found.back_seconds.append(time.monotonic() - at)

    def look(self) -> None:
        """Counts the turns of the conversations in the store."""
        with open_store(self._store) as store:
            for name, (answered, unanswered) in self._counts.items():
                info = store.session(name)
                kept = 0 if info is None else len(store.log(name))
                if kept < answered:
                    self.found.lost.append(f"{name}: {answered} turns answered, {kept} kept")
                if kept > answered + unanswered:
                    self.found.twice.append(f"{name}: {answered} and {unanswered}, {kept} kept")

    def _by_id(self, name: str) -> None:
        """Goes on from the last response; a turn that was not answered is sent again."""
        before, stood_on, added = None, 0, 0
        for turn in range(_LOG_MAX):
            response = None
            while response is None:
                if self.over.is_set():
                    return
                response = self._ask(previous_response_id=before)
            read, wrote = _usage(response)
            if before is not None:
                new = read - stood_on
                added = added or new
                if new != added:
                    kind = self.found.lost if new < added else self.found.twice
                    kind.append(f"{name}, turn {turn}: {new} tokens new, not {added}")
            before, stood_on = response["id"], read + wrote
        self.found.conversations += 1

    def _by_name(self, name: str) -> None:
        """Names the conversation; a turn that was not answered may be in it or not."""
        answered = unanswered = 0
        for _ in range(_LOG_MAX):
            if self.over.is_set():
                break
            if self._ask(conversation=name, on_conflict="wait") is None:
                unanswered += 1
            else:
                answered += 1
            self._counts[name] = answered, unanswered
        self.found.conversations += 1

    def _ask(self, **more: str | None) -> dict[str, Any] | None:
        body = {"model": "demo", "temperature": 0, "input": _SAID, **more}
        request = urllib.request.Request(
            f"{self._cluster.url}/v1/responses",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)
                by = answer.headers["x-served-by"]
        except urllib.error.HTTPError as error:
            self._failed(f"{error.code}: {error.read()[:120].decode('utf-8', 'replace')}")
            return None
        except (OSError, HTTPException, ValueError) as error:
            self._failed(type(error).__name__)
            return None
        with self._lock:
            self._served.add(by)
            self.found.acknowledged += 1
        self.over.wait(_PAUSE_SECONDS)
        return found

    def _failed(self, why: str) -> None:
        with self._lock:
            self.found.unanswered[why] += 1
        self.over.wait(0.2)


def _usage(response: dict[str, Any]) -> tuple[int, int]:
    usage = response["usage"]
    return usage["input_tokens"], usage["output_tokens"]
