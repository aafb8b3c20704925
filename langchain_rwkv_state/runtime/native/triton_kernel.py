"""Computes the recurrence of RWKV-7 in one Triton kernel: decode and prefill, ragged, in the slots.

A program holds some rows of one head's state in registers, which need nothing of each other. It
reads whole chunks of its segment in the chunked form of `recurrence.chunked` and the tokens that
are left one by one, and writes the rows back. It is checked against the plain forms in Triton's
interpreter, and compiles for cards from compute capability 7.5 to 9.0, but has not yet run on one:
its blocks and warps are chosen so that registers suffice, not by speed, and whether
`fused_recurrent_rwkv7` and `chunk_rwkv7` of flash-linear-attention would serve better is open.
`tl.dot` is told not to use TF32, which would round fp32 to 10 bits.

T tokens of G segments, S slots, H heads, N head size, L chunk length.
"""

from __future__ import annotations

import contextlib
import logging
import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.runtime.native.recurrence import CHUNK, Places, Tokens
from langchain_rwkv_state.runtime.native.recurrence import recur as plain_recur

logger = logging.getLogger(__name__)

BLOCK = 16
"""Rows of a state that a program holds; `tl.dot` takes no fewer."""

TOLERANCE = 1e-4
"""Largest share by which a trial may differ from the plain form."""


def recur(tokens: Tokens, wkv: Tensor, places: Places) -> Tensor:
    """Reads tokens into slots; see `recurrence.recur`.

    Args:
        tokens: T tokens.
        wkv: ``[S, H, N, N]``, fp32, contiguous; the named slots are updated in place.
        places: Which tokens belong together, and their slots.

    Returns:
        The outputs ``[T, H, N]``.
    """
    _, heads, size, _ = wkv.shape
    y = torch.empty(tokens.v.shape, device=wkv.device)
    wide = max(16, triton.next_power_of_2(size))
    chunks = places.longest >= CHUNK
    grid = (len(places.slot), heads, triton.cdiv(size, BLOCK))
    on_device = torch.cuda.device(wkv.device) if wkv.is_cuda else contextlib.nullcontext()
    with on_device:
        _kernel[grid](
            *(part.contiguous() for part in tokens),
            y,
            wkv,
            places.start,
            places.slot,
            heads,
            size=size,
            wide=wide,
            block=BLOCK,
            chunk=CHUNK,
            chunks=chunks,
            num_warps=warps(wide, chunks=chunks),
        )
    return y


def warps(wide: int, *, chunks: bool) -> int:
    """Returns how many warps share a program: so many that its registers suffice at N = 64."""
    if chunks:
        return 4 if wide <= 64 else 8
    return max(1, wide // 64)


def works(device: torch.device, size: int) -> bool:
    """Says whether the kernel compiles for a device and agrees with the plain form there.

    Compiling takes seconds the first time, and no answer is to wait for that.
    """
    try:
        error = max(_trial(device, size, count) for count in (1, 2 * CHUNK + 1))
    except Exception as cause:  # noqa: BLE001 - compilers and drivers fail in many ways
        logger.warning("The Triton kernel does not run on %s, so it is not used: %s", device, cause)
        return False
    if error > TOLERANCE:
        logger.warning("The Triton kernel is off by %.1g on %s: not used.", error, device)
    return error <= TOLERANCE


def _trial(device: torch.device, size: int, count: int) -> float:
    """Reads tokens into one state of one head; returns the largest error, as a share."""
    numbers = torch.rand(6, count, 1, size, generator=torch.Generator().manual_seed(0))
    r, w, k, v, removal, rate = numbers.to(device)
    removal = functional.normalize(removal, dim=-1)
    tokens = Tokens(r, 1 - 0.4 * w, k, v, -removal, removal * rate)
    places = Places.of((0, count), (1,), device)
    ours, theirs = (torch.ones(2, 1, size, size, device=device) for _ in range(2))
    pairs = (
        (recur(tokens, ours, places), plain_recur(tokens, theirs, places)),
        (ours, theirs),
    )
    errors = [((one - other).abs().max() / other.abs().max()).item() for one, other in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


# Not compiled anew for another number of heads, so that what `works` compiled is what will run.
@triton.jit(do_not_specialize=["heads"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(
    r_at: tl.tensor,
    w_at: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    a_at: tl.tensor,
    b_at: tl.tensor,
    y_at: tl.tensor,
    wkv_at: tl.tensor,
    start_at: tl.tensor,
    slot_at: tl.tensor,
    heads: tl.tensor,
    size: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
) -> None:
    segment, head = tl.program_id(0), tl.program_id(1)
    rows = tl.program_id(2) * block + tl.arange(0, block)
    cols = tl.arange(0, wide)
    row_in, col_in = rows < size, cols < size
    begin, end = tl.load(start_at + segment), tl.load(start_at + segment + 1)
    slot = tl.load(slot_at + segment)
    place = wkv_at + ((slot * heads + head) * size + rows[:, None]) * size + cols[None, :]
    inside = row_in[:, None] & col_in[None, :]
    state = tl.load(place, mask=inside, other=0.0)  # [block, N]

    if chunks:
        number = tl.arange(0, chunk)
        strict = number[:, None] > number[None, :]
        lower = number[:, None] >= number[None, :]
        for whole in range((end - begin) // chunk):
            token = ((begin + whole * chunk + number) * heads + head) * size
            at = token[:, None] + cols[None, :]  # [L, N]
            there = col_in[None, :]
            log_w = tl.log(tl.load(w_at + at, mask=there, other=1.0))
            until = tl.cumsum(log_w, 0)
            r = tl.load(r_at + at, mask=there, other=0.0) * tl.exp(until)
            a = tl.load(a_at + at, mask=there, other=0.0) * tl.exp(until - log_w)
            k = tl.load(k_at + at, mask=there, other=0.0) * tl.exp(-until)
            b = tl.load(b_at + at, mask=there, other=0.0) * tl.exp(-until)
            mine = token[:, None] + rows[None, :]  # [L, block]
            mine_in = row_in[None, :]
            v = tl.load(v_at + mine, mask=mine_in, other=0.0)
            # The inverse of 1 - tril(A B', -1), row by row; the products' upper half is B A'.
            removal = tl.dot(b, tl.trans(a), input_precision="ieee")
            inverse = tl.where(number[:, None] == number[None, :], 1.0, 0.0)
            for row in range(1, chunk):
                here = (number[None, :] == row) & (number[:, None] < row)
                factors = tl.sum(tl.where(here, removal, 0.0), 1)
                added = tl.sum(factors[:, None] * inverse, 0)
                inverse += tl.where(number[:, None] == row, added[None, :], 0.0)
            before = tl.trans(state)  # [N, block]
            ak = tl.where(strict, tl.dot(a, tl.trans(k), input_precision="ieee"), 0.0)
            u = tl.dot(a, before, input_precision="ieee")
            u = tl.dot(ak, v, u, input_precision="ieee")
            u = tl.dot(inverse, u, input_precision="ieee")
            rb = tl.where(lower, tl.dot(r, tl.trans(b), input_precision="ieee"), 0.0)
            rk = tl.where(lower, tl.dot(r, tl.trans(k), input_precision="ieee"), 0.0)
            y = tl.dot(r, before, input_precision="ieee")
            y = tl.dot(rb, u, y, input_precision="ieee")
            y = tl.dot(rk, v, y, input_precision="ieee")
            tl.store(y_at + mine, y, mask=mine_in)
            state = tl.dot(tl.trans(u), b, state, input_precision="ieee")
            state = tl.dot(tl.trans(v), k, state, input_precision="ieee")
            state *= tl.exp(tl.sum(log_w, 0))[None, :]
        begin += (end - begin) // chunk * chunk

    for one in range(begin, end):
        token = (one * heads + head) * size
        r = tl.load(r_at + token + cols, mask=col_in, other=0.0)
        w = tl.load(w_at + token + cols, mask=col_in, other=1.0)
        k = tl.load(k_at + token + cols, mask=col_in, other=0.0)
        a = tl.load(a_at + token + cols, mask=col_in, other=0.0)
        b = tl.load(b_at + token + cols, mask=col_in, other=0.0)
        v = tl.load(v_at + token + rows, mask=row_in, other=0.0)
        removed = tl.sum(state * a[None, :], 1)
        state = state * w[None, :] + removed[:, None] * b[None, :] + v[:, None] * k[None, :]
        tl.store(y_at + token + rows, tl.sum(state * r[None, :], 1), mask=row_in)

    tl.store(place, state, mask=inside)
