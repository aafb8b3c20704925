"""Computes what remembering costs the published RWKV models, by their size: nothing is measured.

The easy mistake is to type such a table: figures in counts of numbers were passed on as bytes for
years.
"""

from __future__ import annotations

from benchmarks.state_tables import table as markdown
from langchain_rwkv_state.state import StateLayout, Version, memory

CONTEXTS = {"1k": 1 << 10, "8k": 1 << 13, "128k": 1 << 17, "1M": 1 << 20}
"""Tokens, by the name that a table has for them."""

MODELS: tuple[tuple[str, Version, int, int], ...] = (
    ("RWKV-4 169M", 4, 12, 768),
    ("RWKV-4 430M", 4, 24, 1024),
    ("RWKV-4 1.5B", 4, 24, 2048),
    ("RWKV-4 3B", 4, 32, 2560),
    ("RWKV-4 7B", 4, 32, 4096),
    ("RWKV-4 14B", 4, 40, 5120),
    ("RWKV-5 0.4B", 5, 24, 1024),
    ("RWKV-5 1.5B", 5, 24, 2048),
    ("RWKV-5 3B", 5, 32, 2560),
    ("RWKV-5 7B", 5, 32, 4096),
    ("RWKV-6 1.6B", 6, 24, 2048),
    ("RWKV-6 3B", 6, 32, 2560),
    ("RWKV-6 7B", 6, 32, 4096),
    ("RWKV-7 0.1B", 7, 12, 768),
    ("RWKV-7 0.4B", 7, 24, 1024),
    ("RWKV-7 1.5B", 7, 24, 2048),
    ("RWKV-7 2.9B", 7, 32, 2560),
    ("RWKV-7 7.2B", 7, 32, 4096),
)
"""Name, version, layers and width; heads are of 64 from RWKV-5 on."""


def layout_of(version: Version, n_layer: int, n_embd: int) -> StateLayout:
    """Returns the layout of a published model's states."""
    size = None if version == 4 else 64
    return StateLayout.of(version, n_layer=n_layer, n_embd=n_embd, head_size=size)


def table() -> str:
    """Returns a Markdown table: states in bytes, caches in MB, and how many times larger."""
    found = []
    for name, version, n_layer, n_embd in MODELS:
        layout = layout_of(version, n_layer, n_embd)
        costs = {length: memory(layout, tokens) for length, tokens in CONTEXTS.items()}
        caches = [f"{c.cache / 1e6:,.0f} / {c.grouped / 1e6:,.0f}" for c in costs.values()]
        at_8k = costs["8k"]
        times = f"{at_8k.cache / at_8k.state:,.0f} / {at_8k.grouped / at_8k.state:,.0f}"
        size = f"{n_layer} x {n_embd}"
        found.append([name, size, f"{layout.nbytes:,}", *caches, times])
    head = ["model", "layers x width", "state, bytes", *CONTEXTS, "at 8k, times"]
    return markdown(head, found)
