"""Rows of logits, and how to choose from them, over the whole range of both."""

from __future__ import annotations

import numpy as np

from langchain_rwkv_state.runtime.sampling import Draw, Floats, Words

NOTHING = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
# Around words of a mask and blocks of the compiled code; the demo model's vocabulary is 640.
SIZES = (1, 2, 31, 32, 33, 63, 100, 511, 512, 513, 640, 1030)


def mask(allowed: np.ndarray) -> Words:
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def some_row(rng: np.random.Generator, size: int) -> Floats:
    """Logits flat or steep, with ties or without, as far apart as fp32 goes."""
    logits = rng.standard_normal(size).astype(np.float32)
    logits *= np.float32(rng.choice([0, 1e-40, 1e-3, 1, 3, 8, 40, 3e37]))
    if rng.random() < 0.3:
        logits[rng.random(size) < 0.7] = rng.choice([0.0, -0.0])
    return np.round(logits) if rng.random() < 0.3 else logits


def some_draw(rng: np.random.Generator, size: int) -> Draw:
    """Settings over their whole range."""
    ids = rng.permutation(size)[: rng.integers(0, min(size, 300) + 1)] * (rng.random() < 0.5)
    ids = np.unique(ids).astype(np.int64)
    penalties = rng.standard_normal(len(ids)) * rng.choice([0.5, 1e6])
    share = rng.choice([0, 0.01, 0.3, 0.9, 1])
    return Draw(
        float(rng.choice([0, 2e-38, 0.3, 1, 1, 1.7, 3e38])),
        float(rng.choice([5e-324, 1e-6, 0.01, 0.3, 0.7, 0.99, 1 - 1e-16, 1])),
        min(size, int(rng.choice([0, 0, 1, 2, 40, size]))),
        int(rng.integers(2**64, dtype=np.uint64)),
        ids,
        penalties.astype(np.float32),
        mask(rng.random(size) < share) if rng.random() < 0.5 else None,
    )
