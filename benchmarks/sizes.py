"""Computes what serving the released RWKV-7 models takes, as `rwkv-state size` does for a file.

Nothing is measured, and no file is needed: weights are counted from the released shapes. The easy
mistake is to take a figure of one process for that of a machine: weights and slots are there once
for each process.
"""

from __future__ import annotations

from benchmarks.cuda.shapes import HEAD_SIZE, Shape
from benchmarks.state_tables import table as markdown
from langchain_rwkv_state._text import size
from langchain_rwkv_state.state import StateLayout
from langchain_rwkv_state.toolbox.sizing import size_of

SESSIONS = 1_000
SHAPES = (
    Shape("RWKV-7 0.1B", 12, 768),
    Shape("RWKV-7 0.4B", 24, 1024),
    Shape("RWKV-7 1.5B", 24, 2048),
    Shape("RWKV-7 2.9B", 32, 2560),
    Shape("RWKV-7 7.2B", 32, 4096),
)


def table() -> str:
    """Returns a Markdown table: a process on a CPU and on a card, and a thousand sessions."""
    rows = []
    for shape in SHAPES:
        layout = StateLayout.of(7, n_layer=shape.n_layer, n_embd=shape.n_embd, head_size=HEAD_SIZE)
        exact, on_card, int8 = (
            size_of(layout, shape.nbytes, sessions=SESSIONS, **more)
            for more in ({}, {"on_card": True}, {"codec": "int8"})
        )
        figures = (
            exact.weights_bytes,
            exact.state_bytes,
            exact.slots_bytes,
            on_card.slots_bytes,
            exact.stored_bytes,
            int8.stored_bytes,
            exact.redis_bytes,
        )
        rows.append([shape.name, *map(size, figures)])
    slots = f"{exact.slots} slots"
    head = ["model", "weights, 16 bits", "a state", f"{slots}, CPU", f"{slots}, card"]
    return markdown([*head, "on a disk", "the same, `int8`", "in Redis"], rows)
