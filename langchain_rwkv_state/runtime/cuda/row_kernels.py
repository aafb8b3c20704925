"""Computes what a pass does to whole rows in Triton: embeddings, norms, shifts, activations.

A program holds one row in registers. Where the row above belongs to the same segment, its norm is
computed anew from what every program may read, so that none waits for another. What a row is to
the next is rounded to the compute dtype in either case: ids in one pass or in many give the same
bits.

T rows of G segments, D width, K mixed inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import NORM_EPS
from langchain_rwkv_state.runtime.cuda.spans import Spans
from langchain_rwkv_state.runtime.native.weights import Norm

FEW_ROWS = 8
"""Up to so many rows, each mixed input of a row has a program of its own: one row alone would leave
the card idle but for one multiprocessor."""

BLOCK = 1024
"""Numbers that a program handles where rows do not matter."""

# Tensors of indices are parts of one, and so at any address: that is to compile nothing anew.
_INDEXES = ["given_at", "slot_at", "last_at", "before_at", "after_at"]
_EPS = tl.constexpr(NORM_EPS)


def embed(emb: Tensor, given: Tensor, slot: Tensor, last: Tensor) -> Tensor:
    """See `Kernels.embed`."""
    rows, width = len(given), emb.shape[1]
    x = emb.new_empty(rows, width)
    block = min(BLOCK, triton.next_power_of_2(width))
    _embed[rows, triton.cdiv(width, block)](
        emb, given, slot, last, x, width=width, block=block, num_warps=4
    )
    return x


def mix(
    x: Tensor, add: Tensor | None, norm: Norm, lerp: Tensor, cells: Tensor, at: Spans
) -> tuple[Tensor, Tensor]:
    """See `Kernels.mix`."""
    (rows, width), count = x.shape, len(lerp)
    total = x if add is None else torch.empty_like(x)
    mixed = x.new_empty(count, rows, width)
    apart = at.longest == 1
    each = 1 if apart and rows <= FEW_ROWS else count
    _mix[rows, count // each](
        x,
        x if add is None else add,
        norm.weight,
        norm.bias,
        lerp,
        cells,
        at.before,
        at.after,
        total,
        mixed,
        rows,
        width=width,
        each=each,
        adds=add is not None,
        apart=apart,
        **_row(width),
    )
    return total, mixed


def end(x: Tensor, add: Tensor, norm: Norm, at: Spans) -> Tensor:
    """See `Kernels.end`."""
    width = x.shape[1]
    out = x.new_empty(len(at.last), width)
    _end[(len(at.last),)](x, add, norm.weight, norm.bias, at.last, out, width=width, **_row(width))
    return out


def relu_squared(x: Tensor) -> Tensor:
    """See `Kernels.relu_squared`; contiguous numbers are overwritten."""
    x = x.contiguous()
    rows, width = x.shape
    _relu_squared[rows, triton.cdiv(width, BLOCK)](
        x, width=width, largest=torch.finfo(x.dtype).max, block=BLOCK, num_warps=4
    )
    return x


def _row(width: int) -> dict[str, int]:
    """Returns how a program holds a row: at most 16 numbers a thread up to a width of 8192."""
    block = triton.next_power_of_2(width)
    return {"block": block, "num_warps": max(1, min(16, block // 256))}


@triton.jit(do_not_specialize_on_alignment=_INDEXES)  # type: ignore[untyped-decorator]  # no types
def _embed(
    emb_at: tl.tensor,
    given_at: tl.tensor,
    slot_at: tl.tensor,
    last_at: tl.tensor,
    x_at: tl.tensor,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    cols = tl.program_id(1) * block + tl.arange(0, block)
    token = tl.load(given_at + row)
    if token < 0:
        token = tl.load(last_at + tl.load(slot_at + row))
    x = tl.load(emb_at + token.to(tl.int64) * width + cols, mask=cols < width)
    tl.store(x_at + row * width + cols, x, mask=cols < width)


# Nor is the number of rows, which differs from pass to pass.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["rows"], do_not_specialize_on_alignment=_INDEXES
)
def _mix(
    x_at: tl.tensor,
    add_at: tl.tensor,
    weight_at: tl.tensor,
    bias_at: tl.tensor,
    lerp_at: tl.tensor,
    cells_at: tl.tensor,
    before_at: tl.tensor,
    after_at: tl.tensor,
    total_at: tl.tensor,
    mixed_at: tl.tensor,
    rows: tl.tensor,
    width: tl.constexpr,
    each: tl.constexpr,
    adds: tl.constexpr,
    apart: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row, first = tl.program_id(0), tl.program_id(1) * each
    cols = tl.arange(0, block)
    there = cols < width
    before, after = tl.load(before_at + row), tl.load(after_at + row)
    if apart or before >= 0:
        kept = tl.load(cells_at + before.to(tl.int64) * width + cols, mask=there, other=0.0)
        back = kept.to(x_at.dtype.element_ty)
    else:
        above = _sum(x_at, add_at, row - 1, cols, width, adds)
        back = _normed(above, weight_at, bias_at, cols, width)
    x = _sum(x_at, add_at, row, cols, width, adds)
    normed = _normed(x, weight_at, bias_at, cols, width)
    if first == 0:
        if adds:
            tl.store(total_at + row * width + cols, x, mask=there)
        if after >= 0:
            tl.store(cells_at + after.to(tl.int64) * width + cols, normed, mask=there)
    wide = normed.to(tl.float32)
    difference = back.to(tl.float32) - wide
    for k in tl.static_range(each):
        share = tl.load(lerp_at + (first + k) * width + cols, mask=there, other=0.0)
        mixed = wide + difference * share.to(tl.float32)
        tl.store(mixed_at + ((first + k) * rows + row) * width + cols, mixed, mask=there)


@triton.jit(do_not_specialize_on_alignment=_INDEXES)  # type: ignore[untyped-decorator]
def _end(
    x_at: tl.tensor,
    add_at: tl.tensor,
    weight_at: tl.tensor,
    bias_at: tl.tensor,
    last_at: tl.tensor,
    out_at: tl.tensor,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    cols = tl.arange(0, block)
    x = _sum(x_at, add_at, tl.load(last_at + tl.program_id(0)), cols, width, adds=True)
    normed = _normed(x, weight_at, bias_at, cols, width)
    tl.store(out_at + tl.program_id(0) * width + cols, normed, mask=cols < width)


@triton.jit  # type: ignore[untyped-decorator]
def _relu_squared(
    x_at: tl.tensor, width: tl.constexpr, largest: tl.constexpr, block: tl.constexpr
) -> None:
    cols = tl.program_id(1) * block + tl.arange(0, block)
    x_at += tl.program_id(0) * width + cols
    x = squared(tl.load(x_at, mask=cols < width, other=0.0).to(tl.float32), largest)
    tl.store(x_at, x, mask=cols < width)


@triton.jit  # type: ignore[untyped-decorator]
def squared(x: tl.tensor, largest: tl.constexpr) -> tl.tensor:
    """Returns ``relu(x)^2``, at most `largest`, of fp32; what is not a number stays so."""
    x = tl.where(x < 0.0, 0.0, x)
    x = x * x
    return tl.where(x > largest, largest, x)


@triton.jit  # type: ignore[untyped-decorator]
def _sum(
    x_at: tl.tensor,
    add_at: tl.tensor,
    row: tl.tensor,
    cols: tl.tensor,
    width: tl.constexpr,
    adds: tl.constexpr,
) -> tl.tensor:
    """Returns a row of ``x + add``, in the compute dtype."""
    x = tl.load(x_at + row * width + cols, mask=cols < width, other=0.0)
    if adds:
        add = tl.load(add_at + row * width + cols, mask=cols < width, other=0.0)
        x = (x.to(tl.float32) + add.to(tl.float32)).to(x.dtype)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def _normed(
    x: tl.tensor, weight_at: tl.tensor, bias_at: tl.tensor, cols: tl.tensor, width: tl.constexpr
) -> tl.tensor:
    """Returns the layer norm of a row, in its dtype."""
    there = cols < width
    wide = x.to(tl.float32)
    centred = tl.where(there, wide - tl.sum(wide, 0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / width + _EPS)
    weight = tl.load(weight_at + cols, mask=there, other=0.0).to(tl.float32)
    bias = tl.load(bias_at + cols, mask=there, other=0.0).to(tl.float32)
    return (centred * scale * weight + bias).to(x.dtype)
