"""The time-mix between its products in Triton: one launch for decode, three for prefill.

In decode a program holds one head's whole state, so that all from the key's norm to the gate is one
launch that reads a state and writes it to another cell. In prefill, `_prepare` brings each chunk of
L rows into the form in which only two products depend on the state (see `_prepare`; all chunks at
once), `_advance` goes through a segment's chunks with some values' share of a head's state, and
`_finish` norms and gates. Chunks lie at multiples of L in the pass, not in a segment: where a part
ends within one, its rows are pieces that know nothing of each other.

Products are in "tf32x3" (three products of TF32 that together are near fp32) on tensor cores, or in
"ieee" where there are none. All but the sizes is told at run time, so that no step compiles anew.
Warps and stages are chosen so that registers suffice on every card, not by speed: nothing of this
has run on one.

T rows of G segments with P parts, C cells, H heads, N head size, D width, L chunk length.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import LEAST_LENGTH, Gates, Heads
from langchain_rwkv_state.runtime.cuda.spans import Spans
from langchain_rwkv_state.runtime.native.plain import GROUP_NORM_EPS
from langchain_rwkv_state.runtime.native.recurrence import CHUNK

Precision: TypeAlias = Literal["tf32x3", "ieee"]

SIZES = (32, 64, 128)
"""Sizes of a head that the kernels know."""
BLOCK = 16
"""Values of a state that a program of `_advance` holds; `tl.dot` takes no fewer."""
PLANES = 8
"""Tensors ``[T, D]``, fp32, that `_prepare` leaves: 32 bytes for each number of a row."""


_GROUP_NORM_EPS = tl.constexpr(GROUP_NORM_EPS)
_LEAST_LENGTH = tl.constexpr(LEAST_LENGTH)

_without_tf32x3: set[torch.device] = set()


def time_mix(
    rkv: Tensor,
    gates: Gates,
    v_first: Tensor | None,
    heads: Heads,
    wkv: Tensor,
    at: Spans,
) -> Tensor:
    """Reads rows into WKV states; see `Kernels.time_mix`.

    Args:
        rkv: Receptance, key and value, ``[3, T, D]``.
        gates: Decay, rate, share of the first values, and gate.
        v_first: The first layer's values, ``[T, D]``; ``None`` in the first layer.
        heads: The layer's weights.
        wkv: WKV states ``[C, H, N, N]``, fp32 or fp16, contiguous.
        at: Which rows belong together.

    Returns:
        What the output matrix is applied to, ``[T, D]``, in the compute dtype.
    """
    _, count, width = rkv.shape
    _, n_heads, size, _ = wkv.shape
    r, k, v = rkv.contiguous()
    w, rate, mix, gate = (part if part is None else part.contiguous() for part in gates)
    if mix is None or v_first is None:
        mix = v_first = None
    weights = heads.k_k, heads.k_a, heads.r_k
    norm = heads.norm.weight, heads.norm.bias
    out = torch.empty_like(r)
    rows = (r, k, v, w, rate, mix, v_first)
    if at.longest == 1:
        _decode[count, n_heads](
            *(*rows, gate, *weights, *norm, wkv, at.before, at.after, out, n_heads),
            size=size,
            num_warps=decode_warps(size),
        )
        return out
    made = rkv.new_empty(PLANES, count, width, dtype=torch.float32)
    bonus = rkv.new_empty(count, n_heads, dtype=torch.float32)
    fixed = {"size": size, "chunk": CHUNK}
    chunks = triton.cdiv(count, CHUNK)
    prepared, advanced = precisions(size, precision(wkv.device))
    _prepare[chunks, n_heads](
        *(*rows, *weights, at.after, made, bonus, count, n_heads),
        **fixed,
        precision=prepared,
        **chunk_options(size),
    )
    _advance[len(at.last), n_heads, size // BLOCK](
        *(made, wkv, at.before, at.after, at.start, at.part, at.end, count, n_heads),
        **fixed,
        block=BLOCK,
        precision=advanced,
        **chunk_options(size),
    )
    _finish[chunks, n_heads](
        *(made, bonus, gate, *norm, out, count, n_heads), **fixed, num_warps=size // 32
    )
    return out


def precision(device: torch.device) -> Precision:
    """Returns in which form a device's products are: what its capability allows and `works` saw."""
    if device in _without_tf32x3:
        return "ieee"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "ieee"
    return "tf32x3"


def give_up_tf32x3(device: torch.device) -> None:
    """Has products on a device in "ieee" from now on."""
    _without_tf32x3.add(device)


def precisions(size: int, settled: Precision) -> tuple[Precision, Precision]:
    """Returns the form of the products of `_prepare` and of `_advance`.

    The former takes more registers than there are in "tf32x3" at N = 128.
    """
    return "ieee" if size > 64 else settled, settled


def decode_warps(size: int) -> int:
    """Returns how many warps hold a head's state: 32 numbers of it a thread, 64 at N = 128."""
    return max(1, size * size // 1024) if size < 128 else 8


def chunk_options(size: int) -> dict[str, int]:
    """Returns how `_prepare` and `_advance` are launched: the latter's loads run ahead."""
    return {"num_warps": size // 16, "num_stages": 3 if size <= 64 else 2}


# The index tensors are parts of one, and so at any address.
INDEXES = ["before_at", "after_at", "start_at", "part_at", "end_at"]
_jit = triton.jit(do_not_specialize=["count", "heads"], do_not_specialize_on_alignment=INDEXES)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _keys(
    k: tl.tensor, rate: tl.tensor, k_k: tl.tensor, k_a: tl.tensor, axis: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Returns the key as it is written, and the removal key."""
    removal = k * k_k
    length = tl.sqrt(tl.sum(removal * removal, axis, keep_dims=True))
    return k * (1 + (rate - 1) * k_a), removal / tl.maximum(length, _LEAST_LENGTH)


@triton.jit  # type: ignore[untyped-decorator]
def _normed(
    y: tl.tensor, weight: tl.tensor, bias: tl.tensor, size: tl.constexpr, axis: tl.constexpr
) -> tl.tensor:
    """Returns the group norm of heads."""
    y -= tl.sum(y, axis, keep_dims=True) / size
    variance = tl.sum(y * y, axis, keep_dims=True) / size
    return y * tl.rsqrt(variance + _GROUP_NORM_EPS) * weight + bias


@_jit  # type: ignore[untyped-decorator]
def _decode(
    r_at: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    w_at: tl.tensor,
    rate_at: tl.tensor,
    mix_at: tl.tensor,
    first_at: tl.tensor,
    gate_at: tl.tensor,
    k_k_at: tl.tensor,
    k_a_at: tl.tensor,
    r_k_at: tl.tensor,
    weight_at: tl.tensor,
    bias_at: tl.tensor,
    wkv_at: tl.tensor,
    before_at: tl.tensor,
    after_at: tl.tensor,
    out_at: tl.tensor,
    heads: tl.tensor,
    size: tl.constexpr,
) -> None:
    row, head = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, size)
    place = number[:, None] * size + number[None, :]
    # In 64 bits: many cells are more numbers than 32 bits can count.
    source = (tl.load(before_at + row).to(tl.int64) * heads + head) * size * size
    target = (tl.load(after_at + row).to(tl.int64) * heads + head) * size * size
    state = tl.load(wkv_at + source + place).to(tl.float32)  # values by keys

    here = head * size + number
    token = row * heads * size + here
    r = tl.load(r_at + token).to(tl.float32)
    k = tl.load(k_at + token).to(tl.float32)
    v = tl.load(v_at + token).to(tl.float32)
    w = tl.load(w_at + token)
    rate = tl.load(rate_at + token).to(tl.float32)
    if mix_at is not None:
        first = tl.load(first_at + token).to(tl.float32)
        v += (first - v) * tl.load(mix_at + token).to(tl.float32)
    k_k = tl.load(k_k_at + here).to(tl.float32)
    k_a = tl.load(k_a_at + here).to(tl.float32)
    k, removal = _keys(k, rate, k_k, k_a, 0)

    removed = -tl.sum(state * removal[None, :], 1)
    state *= w[None, :]
    state += removed[:, None] * (removal * rate)[None, :] + v[:, None] * k[None, :]
    tl.store(wkv_at + target + place, state.to(wkv_at.dtype.element_ty))
    y = tl.sum(state * r[None, :], 1)

    weight = tl.load(weight_at + here).to(tl.float32)
    bias = tl.load(bias_at + here).to(tl.float32)
    bonus = tl.sum(r * k * tl.load(r_k_at + here).to(tl.float32), 0) * v
    gate = tl.load(gate_at + token).to(tl.float32)
    y = (_normed(y, weight, bias, size, 0) + bonus) * gate
    tl.store(out_at + token, y.to(out_at.dtype.element_ty))


@_jit  # type: ignore[untyped-decorator]
def _prepare(
    r_at: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    w_at: tl.tensor,
    rate_at: tl.tensor,
    mix_at: tl.tensor,
    first_at: tl.tensor,
    k_k_at: tl.tensor,
    k_a_at: tl.tensor,
    r_k_at: tl.tensor,
    after_at: tl.tensor,
    made_at: tl.tensor,
    bonus_at: tl.tensor,
    count: tl.tensor,
    heads: tl.tensor,
    size: tl.constexpr,
    chunk: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Solves a chunk's system (see `recurrence.chunked`) but for the state S before it.

    U = Us S' + Uv      Y = Ys S' + Yv      S after = S diag(W) + U' Bs + V' Ks

    It leaves, in this order, Us, Ys, Bs, Ks, Uv, Yv, V, and W in a piece's last row.
    """
    head = tl.program_id(1)
    number = tl.arange(0, chunk)
    row = tl.program_id(0) * chunk + number
    there = row < count
    inside = there[:, None]
    here = head * size + tl.arange(0, size)
    token = row[:, None] * (heads * size) + here[None, :]
    r = tl.load(r_at + token, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_at + token, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_at + token, mask=inside, other=0.0).to(tl.float32)
    log_w = tl.log(tl.load(w_at + token, mask=inside, other=1.0))
    rate = tl.load(rate_at + token, mask=inside, other=0.0).to(tl.float32)
    if mix_at is not None:
        first = tl.load(first_at + token, mask=inside, other=0.0).to(tl.float32)
        v += (first - v) * tl.load(mix_at + token, mask=inside, other=0.0).to(tl.float32)
    k_k = tl.load(k_k_at + here).to(tl.float32)
    k_a = tl.load(k_a_at + here).to(tl.float32)
    k, removal = _keys(k, rate, k_k[None, :], k_a[None, :], 1)
    r_k = tl.load(r_k_at + here).to(tl.float32)
    tl.store(bonus_at + row * heads + head, tl.sum(r * k * r_k[None, :], 1), mask=there)

    # Rows of one piece: a piece ends where a state is kept.
    ends = (tl.load(after_at + row, mask=there, other=-1) >= 0).to(tl.int32)
    piece = tl.cumsum(ends, 0) - ends
    same = piece[:, None] == piece[None, :]
    lower = same & (number[:, None] >= number[None, :])
    strict = same & (number[:, None] > number[None, :])
    # Logarithms of the decays in a piece, up to a row with it, and behind it.
    until = tl.dot(lower.to(tl.float32), log_w, input_precision=precision)
    later = same & (number[:, None] < number[None, :])
    rest = tl.exp(tl.dot(later.to(tl.float32), log_w, input_precision=precision))

    plane = count.to(tl.int64) * heads * size
    b = removal * rate
    tl.store(made_at + 2 * plane + token, b * rest, mask=inside)
    tl.store(made_at + 3 * plane + token, k * rest, mask=inside)
    tl.store(made_at + 6 * plane + token, v, mask=inside)
    final = (ends > 0) | (number == chunk - 1)
    tl.store(made_at + 7 * plane + token, tl.exp(until), mask=inside & final[:, None])

    a = -removal * tl.exp(until - log_w)
    r *= tl.exp(until)
    shrunk = tl.exp(-until)
    b *= shrunk
    k *= shrunk
    # In an order and form in which registers suffice: AB' would keep the operands of the others.
    removed = tl.trans(tl.dot(b, tl.trans(a), input_precision=precision))
    removed = tl.where(strict, removed, 0.0)
    ak = tl.where(strict, tl.dot(a, tl.trans(k), input_precision=precision), 0.0)
    rb = tl.where(lower, tl.dot(r, tl.trans(b), input_precision=precision), 0.0)
    rk = tl.where(lower, tl.dot(r, tl.trans(k), input_precision=precision), 0.0)
    u_values = tl.dot(ak, v, input_precision=precision)
    y_values = tl.dot(rk, v, input_precision=precision)
    # The inverse of 1 - tril(A B', -1), in blocks on the diagonal that grow from two rows to all.
    # (1 + M times 1 + M^2, and so on, would be as short, but M's powers may grow large.)
    tl.static_assert(chunk == 16)
    across, down = number[:, None], number[None, :]
    inverse = tl.where(across // 2 == down // 2, removed, 0.0) + tl.where(across == down, 1.0, 0.0)
    for level in range(1, 4):
        between = (across >> (level + 1) == down >> (level + 1)) & (
            across >> level != down >> level
        )
        below = tl.dot(tl.where(between, removed, 0.0), inverse, input_precision=precision)
        inverse = tl.dot(inverse, below, inverse, input_precision=precision)
    u_state = tl.dot(inverse, a, input_precision=precision)
    tl.store(made_at + token, u_state, mask=inside)
    y_state = tl.dot(rb, u_state, r, input_precision=precision)
    tl.store(made_at + plane + token, y_state, mask=inside)
    u_values = tl.dot(inverse, u_values, input_precision=precision)
    tl.store(made_at + 4 * plane + token, u_values, mask=inside)
    y_values = tl.dot(rb, u_values, y_values, input_precision=precision)
    tl.store(made_at + 5 * plane + token, y_values, mask=inside)


@_jit  # type: ignore[untyped-decorator]
def _advance(
    made_at: tl.tensor,
    wkv_at: tl.tensor,
    before_at: tl.tensor,
    after_at: tl.tensor,
    start_at: tl.tensor,
    part_at: tl.tensor,
    end_at: tl.tensor,
    count: tl.tensor,
    heads: tl.tensor,
    size: tl.constexpr,
    block: tl.constexpr,
    chunk: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Goes through a segment's pieces with `block` values of a head's state; leaves Y for Yv."""
    segment, head = tl.program_id(0), tl.program_id(1)
    values = tl.program_id(2) * block + tl.arange(0, block)
    keys = tl.arange(0, size)
    # Two tiles in one, for one product in place of two: Us and Ys, Uv and Yv, Bs and Ks, U and V.
    number = tl.arange(0, 2 * chunk) % chunk
    second = tl.arange(0, 2 * chunk) >= chunk
    plane = count.to(tl.int64) * heads * size
    both_at = made_at + tl.where(second, plane, 0)
    place = values[:, None] * size + keys[None, :]
    row = tl.load(start_at + segment)
    source = (tl.load(before_at + row).to(tl.int64) * heads + head) * size * size
    state = tl.load(wkv_at + source + place).to(tl.float32)
    for part in range(tl.load(part_at + segment), tl.load(part_at + segment + 1)):
        stop = tl.load(end_at + part)
        for whole in range(row // chunk, tl.cdiv(stop, chunk)):
            last = tl.minimum((whole + 1) * chunk, stop) - 1
            decay = tl.load(made_at + 7 * plane + (last * heads + head) * size + keys)
            if (
                precision == "ieee"
            ):  # row by row: such a product takes more registers than there are
                added = tl.zeros_like(state)
                for one in range(tl.maximum(whole * chunk, row), last + 1):
                    by_key = made_at + (one * heads + head) * size + keys
                    by_value = made_at + (one * heads + head) * size + values
                    u = tl.sum(state * tl.load(by_key)[None, :], 1) + tl.load(by_value + 4 * plane)
                    y = tl.sum(state * tl.load(by_key + plane)[None, :], 1)
                    y += tl.load(by_value + 5 * plane)
                    tl.store(by_value + 5 * plane, y)
                    v = tl.load(by_value + 6 * plane)
                    added += u[:, None] * tl.load(by_key + 2 * plane)[None, :]
                    added += v[:, None] * tl.load(by_key + 3 * plane)[None, :]
                state = state * decay[None, :] + added
            else:
                at = whole * chunk + number
                there = (at >= row) & (at < stop)
                inside = there[:, None]
                lower = (there & second)[None, :]
                token_at = both_at + (at * heads + head) * size
                by_key = token_at[:, None] + keys[None, :]
                by_value = token_at[None, :] + values[:, None]
                read = tl.load(by_key, mask=inside, other=0.0)
                written = tl.load(by_key + 2 * plane, mask=inside, other=0.0)
                uy = tl.load(by_value + 4 * plane, mask=there[None, :], other=0.0)
                v = tl.load(by_value + 5 * plane, mask=lower, other=0.0)
                uy = tl.dot(state, tl.trans(read), uy, input_precision=precision)
                tl.store(by_value + 4 * plane, uy, mask=lower)
                uv = tl.where(second[None, :], v, uy)
                state = tl.dot(uv, written, state * decay[None, :], input_precision=precision)
        target = (tl.load(after_at + stop - 1).to(tl.int64) * heads + head) * size * size
        tl.store(wkv_at + target + place, state.to(wkv_at.dtype.element_ty))
        row = stop


@_jit  # type: ignore[untyped-decorator]
def _finish(
    made_at: tl.tensor,
    bonus_at: tl.tensor,
    gate_at: tl.tensor,
    weight_at: tl.tensor,
    bias_at: tl.tensor,
    out_at: tl.tensor,
    count: tl.tensor,
    heads: tl.tensor,
    size: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    head = tl.program_id(1)
    row = tl.program_id(0) * chunk + tl.arange(0, chunk)
    there = row < count
    inside = there[:, None]
    here = head * size + tl.arange(0, size)
    token = row[:, None] * (heads * size) + here[None, :]
    plane = count.to(tl.int64) * heads * size
    y = tl.load(made_at + 5 * plane + token, mask=inside, other=0.0)
    v = tl.load(made_at + 6 * plane + token, mask=inside, other=0.0)
    bonus = tl.load(bonus_at + row * heads + head, mask=there, other=0.0)
    weight = tl.load(weight_at + here).to(tl.float32)
    bias = tl.load(bias_at + here).to(tl.float32)
    gate = tl.load(gate_at + token, mask=inside, other=0.0).to(tl.float32)
    y = _normed(y, weight[None, :], bias[None, :], size, 1)
    y = (y + bonus[:, None] * v) * gate
    tl.store(out_at + token, y.to(out_at.dtype.element_ty), mask=inside)
