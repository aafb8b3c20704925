"""Multiplies matrices by a few rows in Triton, where reading the matrix is all the work.

cuBLAS serves many rows. Here the products of a time-mix are one launch for up to `FEW` rows, and a
channel-mix of one row reads only those rows of its second matrix whose activation is not zero: at
7.2B nine of ten are. Nothing is lost by it, and nothing depends on which program ran first: the
activations of a group are kept in order, each share of the groups is summed by one program, and the
shares are summed in order.

D width, F channel-mix width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.runtime.cuda import row_kernels
from langchain_rwkv_state.runtime.cuda.kernels import Product
from langchain_rwkv_state.runtime.cuda.row_kernels import squared

FEW = 2
"""Rows up to which a product is made here: with more, too few bytes would be under way."""

GROUP = 16
"""Activations that one program makes, and keeps those in front that are not zero."""

SHARES = 16
"""Into so many sums a sparse product is split at most, so that it fills a card."""


def products(receptance: Tensor, key: Tensor, value: Tensor) -> Product:
    """See `Kernels.products`."""
    weights = torch.stack([receptance, key, value])
    turned = weights.transpose(1, 2)

    def product(x: Tensor) -> Tensor:
        count, rows, width = x.shape
        if rows > FEW:
            return torch.bmm(x, turned)
        out = weights.shape[1]
        y = x.new_empty(count, rows, out)
        tile = few_tile(rows, width)
        _few[triton.cdiv(out, tile["block_r"]), count](
            x, weights, y, rows, out=out, width=width, **tile
        )
        return y

    return product


def channel(key: Tensor, value: Tensor) -> Product:
    """See `Kernels.channel`; `value` is kept turned, ``[F, D]``."""
    key, turned = key.contiguous(), value.t().contiguous()

    def product(x: Tensor) -> Tensor:
        if len(x) == 1:
            return _sparse(x, key, turned)
        return torch.mm(row_kernels.relu_squared(functional.linear(x, key)), turned)

    return product


def _sparse(x: Tensor, key: Tensor, turned: Tensor) -> Tensor:
    (inner, width), out = key.shape, turned.shape[1]
    groups = triton.cdiv(inner, GROUP)
    active = x.new_empty(groups * GROUP)
    index = torch.empty_like(active, dtype=torch.int32)
    count = index.new_empty(groups)
    _active[(groups,)](
        x,
        key,
        active,
        index,
        count,
        inner=inner,
        width=width,
        largest=torch.finfo(x.dtype).max,
        group=GROUP,
        block_k=256,
        num_warps=4,
    )
    block_g, block_d = 32, 64
    shares = min(SHARES, triton.next_power_of_2(triton.cdiv(groups, block_g)))
    share = triton.cdiv(groups, shares * block_g) * block_g
    parts = torch.empty(shares, out, dtype=torch.float32, device=x.device)
    _gathered[triton.cdiv(out, block_d), shares](
        active,
        index,
        count,
        turned,
        parts,
        groups=groups,
        out=out,
        group=GROUP,
        share=share,
        block_g=block_g,
        block_s=4,
        block_d=block_d,
        num_warps=4,
    )
    y = x.new_empty(1, out)
    _added[(triton.cdiv(out, 64),)](parts, y, shares=shares, out=out, block=64, num_warps=4)
    return y


def few_tile(rows: int, width: int) -> dict[str, int]:
    """Returns the tile of a program that multiplies few rows, for `rows_by_rows` without `dot`."""
    block_t = triton.next_power_of_2(rows)
    block_k = min(1024 // block_t, triton.next_power_of_2(width))
    return {"block_t": block_t, "block_r": 4, "block_k": block_k, "num_warps": 4}


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def rows_by_rows(
    x_at: tl.tensor,
    t: tl.tensor,
    t_in: tl.tensor,
    w_at: tl.tensor,
    r: tl.tensor,
    r_in: tl.tensor,
    width: tl.constexpr,
    block_t: tl.constexpr,
    block_r: tl.constexpr,
    block_k: tl.constexpr,
    dot: tl.constexpr,
) -> tl.tensor:
    """Returns rows t of one matrix by rows r of another, ``[block_t, block_r]``, in fp32.

    Either in tiles for the tensor cores, or number by number, which a few rows do not slow down.
    """
    if dot:
        total = tl.zeros([block_t, block_r], tl.float32)
        for k in range(0, width, block_k):
            cols = k + tl.arange(0, block_k)
            col_in = cols < width
            x = tl.load(
                x_at + t[:, None] * width + cols[None, :],
                mask=t_in[:, None] & col_in[None, :],
                other=0.0,
            )
            w = tl.load(
                w_at + r[None, :] * width + cols[:, None],
                mask=r_in[None, :] & col_in[:, None],
                other=0.0,
            )
            total = tl.dot(x, w, total)
    else:
        apart = tl.zeros([block_t, block_r, block_k], tl.float32)
        for k in range(0, width, block_k):
            cols = k + tl.arange(0, block_k)[None, None, :]
            col_in = cols < width
            x = tl.load(
                x_at + t[:, None, None] * width + cols,
                mask=t_in[:, None, None] & col_in,
                other=0.0,
            )
            w = tl.load(
                w_at + r[None, :, None] * width + cols,
                mask=r_in[None, :, None] & col_in,
                other=0.0,
            )
            apart += x.to(tl.float32) * w.to(tl.float32)
        total = tl.sum(apart, 2)
    return total


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _few(
    x_at: tl.tensor,
    w_at: tl.tensor,
    y_at: tl.tensor,
    rows: tl.tensor,
    out: tl.constexpr,
    width: tl.constexpr,
    block_t: tl.constexpr,
    block_r: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    which = tl.program_id(1)
    t = tl.arange(0, block_t)
    r = tl.program_id(0) * block_r + tl.arange(0, block_r)
    t_in, r_in = t < rows, r < out
    x_at += which * rows * width
    w_at += which * out * width
    y = rows_by_rows(x_at, t, t_in, w_at, r, r_in, width, block_t, block_r, block_k, dot=False)
    y_at += which * rows * out + t[:, None] * out + r[None, :]
    tl.store(y_at, y, mask=t_in[:, None] & r_in[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _active(
    x_at: tl.tensor,
    w_at: tl.tensor,
    active_at: tl.tensor,
    index_at: tl.tensor,
    count_at: tl.tensor,
    inner: tl.constexpr,
    width: tl.constexpr,
    largest: tl.constexpr,
    group: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    t = tl.arange(0, 1)
    r = tl.program_id(0) * group + tl.arange(0, group)
    y = rows_by_rows(x_at, t, t == 0, w_at, r, r < inner, width, 1, group, block_k, dot=False)
    # What counts is what is zero in the compute dtype, as where all activations are multiplied.
    active = squared(tl.sum(y, 0), largest).to(active_at.dtype.element_ty)
    keep = active != 0.0
    place = tl.program_id(0) * group + tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(active_at + place, active, mask=keep)
    tl.store(index_at + place, r, mask=keep)
    tl.store(count_at + tl.program_id(0), tl.sum(keep.to(tl.int32), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _gathered(
    active_at: tl.tensor,
    index_at: tl.tensor,
    count_at: tl.tensor,
    w_at: tl.tensor,
    part_at: tl.tensor,
    groups: tl.constexpr,
    out: tl.constexpr,
    group: tl.constexpr,
    share: tl.constexpr,
    block_g: tl.constexpr,
    block_s: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    cols = tl.program_id(0) * block_d + tl.arange(0, block_d)
    lane = tl.arange(0, block_g * block_s)
    total = tl.zeros([block_g * block_s, block_d], tl.float32)
    for first in range(0, share, block_g):
        which = tl.program_id(1) * share + first + lane // block_s
        count = tl.load(count_at + which, mask=which < groups, other=0)
        for slot in range(0, tl.max(count, 0), block_s):
            place = slot + lane % block_s
            there = place < count
            place += which * group
            active = tl.load(active_at + place, mask=there, other=0.0).to(tl.float32)
            row = tl.load(index_at + place, mask=there, other=0)
            w = tl.load(
                w_at + row[:, None] * out + cols[None, :],
                mask=there[:, None] & (cols < out)[None, :],
                other=0.0,
            )
            total += active[:, None] * w.to(tl.float32)
    tl.store(part_at + tl.program_id(1) * out + cols, tl.sum(total, 0), mask=cols < out)


@triton.jit  # type: ignore[untyped-decorator]
def _added(
    part_at: tl.tensor,
    y_at: tl.tensor,
    shares: tl.constexpr,
    out: tl.constexpr,
    block: tl.constexpr,
) -> None:
    cols = tl.program_id(0) * block + tl.arange(0, block)
    at = tl.arange(0, shares)[:, None] * out + cols[None, :]
    parts = tl.load(part_at + at, mask=(cols < out)[None, :], other=0.0)
    tl.store(y_at + cols, tl.sum(parts, 0), mask=cols < out)
