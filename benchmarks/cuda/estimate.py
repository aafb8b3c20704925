"""Estimates tokens a second on a card from bytes, FLOPs, launches and the host's time: arithmetic.

Nothing here was measured on a card by this project, and nothing runs on one. A decode step is ten
launches a layer (mix, three products in one, low-rank down and up, time-mix, output, mix, key,
relu squared, value), the embedding before and norm, head and sampling behind. Each takes what its
bytes or its FLOPs take, whichever is longer, and no less than a floor; a gap lies between two. The
host works beside the card: a step takes as long as the longer of both, and a wait for the recording
to be started.

    python -m benchmarks.cuda.estimate [--host-ms B=MS ...] [--shape NAME ...] [--card NAME ...]

B rows, D width, F channel-mix width, V vocabulary size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks import common
from benchmarks.cuda.shapes import HEAD_SIZE, SHAPES, Shape
from benchmarks.state_tables import table as markdown

LAYER_LAUNCHES = 10
OTHER_LAUNCHES = 6  # embedding, last norm, head, and three for sampling

FLOORS_US = {
    "mix": 5.6,  # layer norm alone: rwkv-sglang's profile of an H100 (its finding F0051)
    "time-mix": 6.0,  # its group norm, likewise
    "low-rank": 3.0,  # a small product, likewise; each of the two grouped launches
    "relu2": 1.4,  # an elementwise kernel, likewise
    "embed": 1.4,
    "norm": 5.6,
    "product": 3.0,  # as a small product
    "sampling": 40.0,  # assumed, of the three launches together, the last of which draws in a loop
}
"""Least time of a launch, in microseconds."""
GAP_US = 0.25  # between two kernels of a recording, likewise
START_US = 10.0  # assumed: from the host's call to the first kernel
SAMPLING_PASSES = 4  # assumed: over logits and counts, as if none came from the cache


@dataclass(frozen=True)
class Card:
    """A card as the arithmetic sees it.

    Attributes:
        name: Its name.
        bandwidth: Bytes a second that a memory-bound product reaches.
        flops: FP16 FLOPs a second that a large product reaches, summed in FP32.
    """

    name: str
    bandwidth: float
    flops: float


CARDS = {
    # 5090: reached by rwkv-sglang's products; H100: 72 % of 3.35 TB/s, and 600 of 990 TFLOPS.
    card.name: card
    for card in (Card("5090", 1.5e12, 223e12), Card("H100", 2.4e12, 600e12))
}
ALBATROSS = {
    ("7.2B", "5090", 1): 147.5,
    ("7.2B", "5090", 64): 4662.0,
    ("7.2B", "5090", 320): 9650.0,
    ("1.5B", "H100", 1): 607.3,
}
"""Tokens a second as Albatross's authors published them, fp16; 1.5B in a crowd was not."""
GOAL = 0.8
ZEROS = {"7.2B": 0.9}
"""Share of a channel-mix's activations that are zero, as Albatross reports it; one row skips their
part of the value matrix. Of smaller models it is not known, so nothing is skipped there."""
HOST_MS = {1: 0.2, 64: 1.7, 320: 13.9}
"""Host time of a step: `benchmarks.host_cost` on one AVX-512 core, the slower of two runs, and what
`CudaSlots.launch` takes on the tests' stand-in (0.1, 0.4 and 1.4 ms)."""


@dataclass(frozen=True)
class Estimate:
    """What a step takes, in milliseconds.

    Attributes:
        parts: On the card, by what it does.
        host_ms: On the host, meanwhile.
        rows: Conversations, B.
    """

    parts: dict[str, float]
    host_ms: float
    rows: int

    @property
    def card_ms(self) -> float:
        """All of the card's parts."""
        return sum(self.parts.values())

    @property
    def step_ms(self) -> float:
        """From one step to the next."""
        return max(self.card_ms, self.host_ms) + START_US / 1000

    @property
    def tokens_a_second(self) -> float:
        """Of all conversations together."""
        return 1000 * self.rows / self.step_ms


def estimate(shape: Shape, card: Card, rows: int, *, state_bytes: int, host_ms: float) -> Estimate:
    """Returns what a decode step takes.

    Args:
        shape: The model, in fp16.
        card: The card.
        rows: Conversations at once, B.
        state_bytes: Of a number in a WKV state: 4, or 2.
        host_ms: What the host takes a step.
    """
    width, inner, vocab = shape.n_embd, 4 * shape.n_embd, shape.vocab

    def seconds(floor: str, nbytes: float, numbers: float = 0.0) -> float:
        """Returns a launch's time; `numbers` are those of a matrix, which is read once."""
        moved = (nbytes + 2 * numbers) / card.bandwidth
        return max(FLOORS_US[floor] / 1e6, moved, 2 * rows * numbers / card.flops)

    def multiply(*sizes: float) -> float:
        return seconds("product", 2 * rows * sum(sizes[:2]), math.prod(sizes))

    def mix(results: int) -> float:
        # Reads x, what is added, and the row before; writes x, the row after, and the results.
        return seconds("mix", 2 * rows * width * (5 + results))

    ranks = sum(shape.ranks.values())
    read = inner * (1 - ZEROS.get(shape.name, 0)) if rows == 1 else inner
    # r, k, v, decay in fp32, three gates, the first layer's values, and what comes out.
    state = 2 * state_bytes * width * HEAD_SIZE
    layer = {
        "products": multiply(width, width, 3)
        + multiply(width, width)
        + multiply(width, inner)
        + multiply(read, width),
        "low-rank": seconds("low-rank", 2 * rows * (4 * width + ranks), width * ranks)
        + seconds("low-rank", 2 * rows * (ranks + 5 * width), width * ranks),
        "time-mix": seconds("time-mix", rows * (state + 2 * 10 * width)),
        "elementwise": mix(6) + mix(1) + seconds("relu2", 4 * rows * inner),
        "gaps": LAYER_LAUNCHES * GAP_US / 1e6,
    }
    parts = {name: 1000 * shape.n_layer * found for name, found in layer.items()}
    parts["elementwise"] += 1000 * (
        seconds("embed", 4 * rows * width) + seconds("norm", 6 * rows * width)
    )
    parts["head"] = 1000 * multiply(width, vocab)
    # Logits in fp16 and counts in fp32; the counts are written once.
    parts["sampling"] = 1000 * seconds("sampling", rows * vocab * (6 * SAMPLING_PASSES + 4))
    parts["gaps"] += OTHER_LAUNCHES * GAP_US / 1000
    return Estimate(parts, host_ms, rows)


def table(
    which: Iterable[tuple[str, str]], host_ms: dict[int, float]
) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of a table of estimates.

    Args:
        which: Names of shapes and cards.
        host_ms: What the host takes a step, by the number of rows.
    """
    rows = []
    states = ((4, "fp32"), (2, "fp16"))
    for (name, card), (batch, host), (size, dtype) in product(which, host_ms.items(), states):
        found = estimate(SHAPES[name], CARDS[card], batch, state_bytes=size, host_ms=host)
        published = ALBATROSS.get((name, card, batch))
        speed = found.tokens_a_second
        rows.append(
            [
                *(f"{name}, {card}", str(batch), dtype),
                *(f"{part:.2f}" for part in found.parts.values()),
                *(f"{found.card_ms:.2f}", f"{host:g}", f"{speed:,.0f}"),
                f"{speed / published:.2f}" if published else "",
            ]
        )
    head = ["model, card", "B", "states", *found.parts, "card", "host", "tokens/s", "of Albatross"]
    return head, rows


def page() -> str:
    """Returns the table of docs/benchmarks.md: where Albatross published."""
    which = dict.fromkeys((name, card) for name, card, _ in ALBATROSS)
    return markdown(*table(which, HOST_MS))


def parsed(words: Sequence[str]) -> dict[int, float]:
    """Returns the host's times with those that were given in their place: ``64=5``."""
    given = dict(HOST_MS)
    for word in words:
        batch, _, value = word.partition("=")
        try:
            given[int(batch)] = float(value)
        except ValueError:
            raise SystemExit(f"--host-ms takes B=MS, such as 64=5, not {word!r}.") from None
    return given


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimates tokens a second; runs on no card.")
    parser.add_argument("--host-ms", nargs="*", default=[], metavar="B=MS", help="ms of the host")
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["1.5B", "7.2B"])
    parser.add_argument("--card", nargs="*", choices=CARDS, default=list(CARDS))
    arguments = parser.parse_args()
    which = product(arguments.shape, arguments.card)
    head, rows = table(which, parsed(arguments.host_ms))
    common.print_table("Estimated milliseconds of a decode step; measured on no card", head, rows)


if __name__ == "__main__":
    main()
