"""Computes the low-rank maps of a time-mix in two Triton launches: all down, then all up.

A program belongs to one map, so that its weights, its input and its activation are that map's. In
between lies ``[T, R]``, in the compute dtype, with the maps beside one another in the order decay,
rate, gate, value mix: the last is missing in the first layer.

T rows, D width, R ranks of all maps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import Gates, LowRank, PlainKernels
from langchain_rwkv_state.runtime.cuda.vector_kernels import FEW, few_tile, rows_by_rows
from langchain_rwkv_state.runtime.native.plain import DECAY
from langchain_rwkv_state.runtime.native.weights import Lora

_DECAY = tl.constexpr(DECAY)


def low_rank(decay: Lora, rate: Lora, value_mix: Lora | None, gate: Lora) -> LowRank:
    """See `Kernels.low_rank`."""
    maps = [decay, rate, gate] if value_mix is None else [decay, rate, gate, value_mix]
    # Both as [R, D]: a map's rows begin on a border, whatever the ranks.
    down = torch.cat([lora.down for lora in maps])
    up = torch.cat([lora.up.t() for lora in maps])
    none = torch.zeros_like(down[0])
    bias = torch.stack([none if lora.bias is None else lora.bias for lora in maps])
    ranks = [len(lora.down) for lora in maps]
    whole = [*ranks, 0][:4]
    names = ("decay_rank", "rate_rank", "gate_rank", "value_rank")
    fixed = {"width": down.shape[1], **dict(zip(names, whole, strict=True))}
    parts = (torch.split(down, ranks), torch.split(up, ranks), bias)
    kept = [Lora(part, other.t(), row) for part, other, row in zip(*parts, strict=True)]
    plain = PlainKernels().low_rank(kept[0], kept[1], kept[3] if value_mix else None, kept[2])

    def gates(mixed: Tensor) -> Gates:
        _, rows, width = mixed.shape
        few = rows <= FEW
        if not few and not _has_tensor_cores(mixed):
            return plain(mixed)
        inner = mixed.new_empty(rows, len(down))
        tile = _down_tile(rows, width)
        blocks = sum(triton.cdiv(rank, tile["block_r"]) for rank in ranks)
        # The rows come first: programs that run beside one another read the same weights.
        _down[triton.cdiv(rows, tile["block_t"]), blocks](
            mixed, down, inner, rows, few=few, **fixed, **tile
        )
        w = torch.empty(rows, width, dtype=torch.float32, device=mixed.device)
        others = mixed.new_empty(len(maps) - 1, rows, width)
        tile = _up_tile(rows)
        _up[triton.cdiv(rows, tile["block_t"]), triton.cdiv(width, tile["block_d"]), len(maps)](
            inner, up, bias, w, others, rows, few=few, **fixed, **tile
        )
        return Gates(w, others[0], None if value_mix is None else others[2], others[1])

    return gates


def _has_tensor_cores(x: Tensor) -> bool:
    """Says whether Triton has them for these numbers; elsewhere cuBLAS is much the faster."""
    if x.dtype == torch.float32:
        return False
    return not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 0)


def _down_tile(rows: int, width: int) -> dict[str, int]:
    """Returns the tile of a program: smaller ones for fewer rows, so that they fill a card."""
    if rows <= FEW:
        return few_tile(rows, width)
    if rows <= 16:
        return _tile(t=16, r=16, k=256)
    if rows <= 128:
        return _tile(t=32, r=16, k=128)
    return _tile(t=64, r=32, k=64) if rows <= 512 else _tile(t=128, r=64, k=64)


def _tile(*, t: int, r: int, k: int) -> dict[str, int]:
    warps, stages = (8, 3) if t == 128 else (4, 4)
    return {"block_t": t, "block_r": r, "block_k": k, "num_warps": warps, "num_stages": stages}


def _up_tile(rows: int) -> dict[str, int]:
    if rows <= FEW:
        block_t = triton.next_power_of_2(rows)
        return {"block_t": block_t, "block_k": 128 // block_t, "block_d": 32, "num_warps": 4}
    t, d = (16, 32) if rows <= 16 else (32, 64) if rows <= 128 else (64, 64)
    return {"block_t": t, "block_k": 32, "block_d": d, "num_warps": 4, "num_stages": 3}


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _down(
    mixed_at: tl.tensor,
    down_at: tl.tensor,
    inner_at: tl.tensor,
    rows: tl.tensor,
    width: tl.constexpr,
    few: tl.constexpr,
    decay_rank: tl.constexpr,
    rate_rank: tl.constexpr,
    gate_rank: tl.constexpr,
    value_rank: tl.constexpr,
    block_t: tl.constexpr,
    block_r: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    number = tl.program_id(1)
    rate_block: tl.constexpr = (decay_rank + block_r - 1) // block_r
    gate_block: tl.constexpr = rate_block + (rate_rank + block_r - 1) // block_r
    value_block: tl.constexpr = gate_block + (gate_rank + block_r - 1) // block_r
    which = (
        (number >= rate_block).to(tl.int32)
        + (number >= gate_block).to(tl.int32)
        + (number >= value_block).to(tl.int32)
    )
    number -= _pick(which, 0, rate_block, gate_block, value_block)
    begin, rank = _rows_of(which, decay_rank, rate_rank, gate_rank, value_rank)
    t = tl.program_id(0) * block_t + tl.arange(0, block_t)
    r = number * block_r + tl.arange(0, block_r)
    t_in, r_in = t < rows, r < rank
    r += begin
    mixed_at += _pick(which, 3, 4, 5, 2) * rows * width  # w, a, g and v of r, k, v, w, a, g
    y = rows_by_rows(
        mixed_at, t, t_in, down_at, r, r_in, width, block_t, block_r, block_k, dot=not few
    )
    if which == 0:
        y = 2.0 * tl.sigmoid(2.0 * y) - 1.0  # tanh
    elif which == 2:
        y = tl.sigmoid(y)
    total: tl.constexpr = decay_rank + rate_rank + gate_rank + value_rank
    inner_at += t[:, None] * total + r[None, :]
    tl.store(inner_at, y, mask=t_in[:, None] & r_in[None, :])


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _up(
    inner_at: tl.tensor,
    up_at: tl.tensor,
    bias_at: tl.tensor,
    decay_at: tl.tensor,
    others_at: tl.tensor,
    rows: tl.tensor,
    width: tl.constexpr,
    few: tl.constexpr,
    decay_rank: tl.constexpr,
    rate_rank: tl.constexpr,
    gate_rank: tl.constexpr,
    value_rank: tl.constexpr,
    block_t: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    which = tl.program_id(2)
    total: tl.constexpr = decay_rank + rate_rank + gate_rank + value_rank
    begin, rank = _rows_of(which, decay_rank, rate_rank, gate_rank, value_rank)
    t = tl.program_id(0) * block_t + tl.arange(0, block_t)
    cols = tl.program_id(1) * block_d + tl.arange(0, block_d)
    t_in, col_in = t < rows, cols < width
    inner_at += begin
    up_at += begin * width
    if few:
        apart = tl.zeros([block_t, block_k, block_d], tl.float32)
        for k in range(0, rank, block_k):
            r = k + tl.arange(0, block_k)[None, :, None]
            inner = tl.load(
                inner_at + t[:, None, None] * total + r,
                mask=t_in[:, None, None] & (r < rank),
                other=0.0,
            )
            w = tl.load(
                up_at + r * width + cols[None, None, :],
                mask=(r < rank) & col_in[None, None, :],
                other=0.0,
            )
            apart += inner.to(tl.float32) * w.to(tl.float32)
        y = tl.sum(apart, 1)
    else:
        y = tl.zeros([block_t, block_d], tl.float32)
        for k in range(0, rank, block_k):
            r = k + tl.arange(0, block_k)
            inner = tl.load(
                inner_at + t[:, None] * total + r[None, :],
                mask=t_in[:, None] & (r < rank)[None, :],
                other=0.0,
            )
            w = tl.load(
                up_at + r[:, None] * width + cols[None, :],
                mask=(r < rank)[:, None] & col_in[None, :],
                other=0.0,
            )
            y = tl.dot(inner, w, y)
    y += tl.load(bias_at + which * width + cols, mask=col_in, other=0.0).to(tl.float32)[None, :]
    if which != 2:  # the gate is taken as it is
        y = tl.sigmoid(y)
    there = t_in[:, None] & col_in[None, :]
    if which == 0:
        at = t[:, None] * width + cols[None, :]
        tl.store(decay_at + at, tl.exp(y * _DECAY), mask=there)
    else:
        at = ((which - 1) * rows + t)[:, None] * width + cols[None, :]
        tl.store(others_at + at, y, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of(
    which: tl.tensor,
    decay_rank: tl.constexpr,
    rate_rank: tl.constexpr,
    gate_rank: tl.constexpr,
    value_rank: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Returns a map's first row among those of all, and how many it has."""
    gate_begin: tl.constexpr = decay_rank + rate_rank
    value_begin: tl.constexpr = gate_begin + gate_rank
    begin = _pick(which, 0, decay_rank, gate_begin, value_begin)
    return begin, _pick(which, decay_rank, rate_rank, gate_rank, value_rank)


@triton.jit  # type: ignore[untyped-decorator]
def _pick(
    which: tl.tensor,
    first: tl.constexpr,
    second: tl.constexpr,
    third: tl.constexpr,
    fourth: tl.constexpr,
) -> tl.tensor:
    low = tl.where(which == 0, first, second)
    return tl.where(which < 2, low, tl.where(which == 2, third, fourth))
