"""Lists what `make gpu` does and how long each part may take, and runs one of them.

python -m benchmarks.cuda.parts PART JSON      # what `Bench` is made of
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cuda import chat, correctness, speed
from benchmarks.cuda.bench import Bench
from benchmarks.cuda.choosing import choosing
from benchmarks.cuda.shapes import SHAPES
from benchmarks.cuda.stand_in import stand_in
from benchmarks.cuda.what_runs import Fallback, what_runs
from benchmarks.models import ROOT

FALLBACK = 3
"""Exit code of a part that found a fallback."""
FULL_SECONDS, QUICK_SECONDS = 20 * 60, 3 * 60


@dataclass(frozen=True)
class Part:
    """A part of `make gpu`.

    Attributes:
        run: Does it.
        seconds: How long it may take.
        quick: The same for `make gpu-quick`; 0 where that leaves it out.
    """

    run: Callable[[Bench], None]
    seconds: float
    quick: float = 0


def pytest(bench: Bench) -> None:
    """Runs the tests that need a card; a dry run collects them.

    Raises:
        RuntimeError: One failed.
    """
    where = "tests/unit_tests/runtime" if bench.quick else "tests"
    command = [sys.executable, "-m", "pytest", where, "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    command += ["--collect-only", "-q"] if bench.dry else []
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"pytest -m cuda ended with code {done.returncode}.")
    bench.note("passed", True)


_CORRECT, _SPEED, _CHAT = (module.parts(list(SHAPES)) for module in (correctness, speed, chat))

PARTS: dict[str, Part] = {
    "what runs": Part(what_runs, 60, 30),
    "choosing": Part(choosing, 30, 20),
    **{
        name: Part(run, seconds, quick)
        for (name, run), seconds, quick in (
            *zip(_CORRECT.items(), (35, 45, 60, 50), (20, 0, 0, 0), strict=True),
            # The first of these builds the peers' CUDA code.
            *zip(_SPEED.items(), (145, 105, 115, 145), (0, 50, 0, 0), strict=True),
            *zip(_CHAT.items(), (45, 50, 60, 75), (0, 30, 0, 0), strict=True),
        )
    },
    "two cards": Part(correctness.two_cards, 30),
    "pytest -m cuda": Part(pytest, 150, 30),
}
"""In this order; what a part leaves of its time is the later ones'."""

FIRST_OF_A_KIND = tuple(
    {name.rpartition(" ")[0] or name: name for name in reversed(PARTS)}.values()
)
"""Parts that a dry run does, for which all shapes are the tiny one."""


def main() -> int:
    """Runs one part in this process."""
    name, given = sys.argv[1:]
    settings = json.loads(given)
    settings["directory"] = Path(settings["directory"])
    bench = Bench(name, **settings)
    if bench.dry:
        stand_in()
    try:
        PARTS[name].run(bench)
    except Fallback as error:
        print(error, file=sys.stderr)
        return FALLBACK
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
