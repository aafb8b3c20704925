"""Serves a contender in a process of its own: a task a line in, its seconds a line out.

Here is the contender's side; it needs the standard library alone. Nothing is compared here. What a
library prints to standard output goes to standard error.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Run = Callable[[], object]


class Contender(Protocol):
    """A program that reads ids into a model."""

    version: str

    def decoder(self, rows: int) -> Run:
        """Returns what reads one more id into each of so many sequences."""
        ...

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt of so many ids from nothing."""
        ...

    def logits(self, ids: Sequence[int]) -> list[float] | None:
        """Returns the logits behind a prompt; ``None`` where nothing of the kind is computed."""
        ...


def some_ids(n: int, vocab: int, seed: int = 0) -> list[int]:
    """Returns `n` ids, the same for every contender; none is the end of a text."""
    rng = random.Random(seed)
    return [rng.randrange(1, vocab) for _ in range(n)]


def serve(load: Callable[[list[str]], Contender]) -> None:
    """Answers tasks until standard input ends.

    A task is ``{"kind": "decode" | "prefill", "n": rows or ids, "times": how often}`` and is
    answered with ``{"seconds": ...}``, or ``{"failed": ...}``; ``times`` of 0 only prepares and
    warms up. ``{"kind":
    "logits", "ids": [...]}`` is answered with ``{"logits": [...]}``. The first line says whether
    there is a contender: ``{"version": ...}``, or ``{"missing": ...}`` where it is not installed.

    Args:
        load: Makes the contender from the command's arguments.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        contender = load(sys.argv[1:])
    except ImportError as error:
        say({"missing": f"{error.name} is not installed" if error.name else str(error)})
        return
    say({"version": contender.version})
    prepared: tuple[tuple[str, int], Run] | None = None
    for line in sys.stdin:
        task = json.loads(line)
        if task["kind"] == "logits":
            say({"logits": contender.logits(task["ids"])})
            continue
        what = (task["kind"], task["n"])
        try:
            if prepared is None or prepared[0] != what:
                prepared = None  # what the one before holds goes first
                make = contender.decoder if task["kind"] == "decode" else contender.reader
                prepared = (what, make(task["n"]))
                prepared[1]()
            run = prepared[1]
            start = time.perf_counter()
            for _ in range(task["times"]):
                run()
        except RuntimeError as error:  # out of memory most often, behind which others may fit
            prepared = None
            say({"failed": f"{type(error).__name__}: {error}"})
            continue
        say({"seconds": time.perf_counter() - start})
