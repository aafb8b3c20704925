"""Chooses tokens from many rows of logits by one call into `sampling.cpp`.

It hands rows over; what a choice is made of is said in `runtime/sampling.py`, and how it is made in
`engine/choices.py`, which does the same in NumPy and is the oracle of the tests. The structures
hold bare addresses: the call keeps every array behind them until it is over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from langchain_rwkv_state.runtime.native import build
from langchain_rwkv_state.runtime.sampling import Draw, Floats, Found

Choose: TypeAlias = Callable[[Floats, Sequence[Draw | None]], list[Found]]


class _Row(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("allowed", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("penalties", ctypes.c_void_p),
        ("penalised", ctypes.c_int64),
        ("top_p", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("temperature", ctypes.c_float),
        ("bits", ctypes.c_uint64),
        ("wanted", ctypes.c_int64),
        ("finite", ctypes.c_int64),
        ("best", ctypes.c_int64),
        ("chosen", ctypes.c_int64),
    )


_LOOK, _BEST, _DRAW = range(3)


def compiled() -> Choose | None:
    """Returns the compiled choice, built if need be; ``None`` where it cannot be had.

    It is called with logits ``[B, V]`` and a draw for each row, ``None`` for one that is only
    looked over, and shares the rows among PyTorch's threads; other Python threads go on meanwhile.
    """
    return _choose if build.enabled() and build.sampling_library() is not None else None


def _choose(logits: Floats, draws: Sequence[Draw | None]) -> list[Found]:
    library: Any = build.sampling_library()
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    count, vocab_size = logits.shape
    rows = (_Row * count)()
    kept: list[Any] = []
    start, stride = logits.ctypes.data, logits.strides[0]
    for number, (row, draw) in enumerate(zip(rows, draws, strict=True)):
        row.logits = start + number * stride
        row.wanted, row.chosen = _LOOK, -1
        if draw is None:
            continue
        row.wanted = _DRAW if draw.temperature else _BEST
        row.temperature, row.top_p, row.top_k = draw.temperature, draw.top_p, draw.top_k
        row.bits = draw.bits
        row.penalised = len(draw.ids)
        if row.penalised:
            arrays = np.ascontiguousarray(draw.ids), np.ascontiguousarray(draw.penalties)
            row.ids, row.penalties = (array.ctypes.data for array in arrays)
            kept.append(arrays)
        if draw.allowed is not None:
            allowed = np.ascontiguousarray(draw.allowed)
            row.allowed = allowed.ctypes.data
            kept.append(allowed)
    n = ctypes.c_int64
    library.choose(rows, n(count), n(vocab_size), n(torch.get_num_threads()))
    return [
        Found(row.best, bool(row.finite), None if row.chosen < 0 else row.chosen) for row in rows
    ]
