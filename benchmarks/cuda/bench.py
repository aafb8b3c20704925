"""Holds what every part of `make gpu` is given, and keeps what it finds as soon as it finds it.

A part runs in a process of its own, which is ended when its time is over; so results go to a file
after each of them. The easy mistake is to drop something in silence: what is left out is noted with
its reason.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Check
from benchmarks.cuda.shapes import SHAPES, TINY, Shape, write

ROWS = (1, 8, 64, 128, 320)
PROMPTS = (256, 1024, 4096)
NO_SLOTS = "slots fit into the card"


@dataclass
class Bench:
    """One part's surroundings.

    Attributes:
        part: Its name.
        directory: Of the models and the results.
        device: ``cuda``; ``cpu`` in a dry run.
        quick: Fewer sizes.
        albatross: A checkout of Albatross.
        seconds: How long the part may take.
        results: What was found, by name.
        checks: What has a target.
        cut: What was left out, and why.
    """

    part: str
    directory: Path
    device: str = "cuda"
    quick: bool = False
    albatross: str | None = None
    seconds: float = 60.0
    results: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds

    @property
    def dry(self) -> bool:
        """Whether nothing runs on a card."""
        return self.device == "cpu"

    @property
    def rows(self) -> tuple[int, ...]:
        """Conversations at once."""
        return (1, 2) if self.dry else ROWS

    @property
    def prompts(self) -> tuple[int, ...]:
        """Lengths of prompts."""
        return (8,) if self.dry else PROMPTS

    def strategy(self, dtype: str = "fp16") -> str:
        """Returns the native runtime's strategy; a dry run computes in fp32 whatever is asked."""
        return "native cpu fp32" if self.dry else f"native cuda {dtype}"

    def shape(self, name: str) -> Shape:
        """Returns a shape by name; a dry run has the tiny one for all."""
        return TINY if self.dry else SHAPES[name]

    def model(self, name: str, *, layers: int | None = None) -> Path:
        """Writes a shape's model where it is not there already, and returns the path."""
        shape = self.shape(name)
        shape = shape if layers is None else shape.cut(layers)
        return write(self.directory / f"{shape.name}-{shape.n_layer}.pth", shape)

    def within_time(self, named: Iterable[str]) -> Iterator[str]:
        """Yields names while a fifth of the time is left, and notes those that get none."""
        for name in named:
            if self._until - time.monotonic() > self.seconds / 5:
                yield name
            else:
                self.leave_out(name, "no time was left")

    def note(self, name: str, value: Any) -> None:
        """Keeps a result."""
        self.results[name] = value
        self._save()

    def check(self, check: Check) -> None:
        """Keeps a figure that has a target."""
        self.checks.append(check)
        self._save()

    def leave_out(self, what: str, why: str) -> None:
        """Notes what is not measured."""
        self.cut.append(f"{what}: {why}")
        print(f"left out: {what}: {why}", flush=True)
        self._save()

    def _save(self) -> None:
        found = {
            "results": self.results,
            "checks": [asdict(check) for check in self.checks],
            "cut": self.cut,
        }
        whole = self.file.with_suffix(".new")
        whole.write_text(json.dumps(found), "utf-8")
        whole.replace(self.file)  # a part is ended at any moment

    @property
    def file(self) -> Path:
        """Where the results are."""
        return self.directory / f"{self.part.replace(' ', '_')}.json"


def no_memory(said: str) -> bool:
    """Says whether an error's text is of memory that the card has not."""
    return "out of memory" in said.lower() or NO_SLOTS in said
