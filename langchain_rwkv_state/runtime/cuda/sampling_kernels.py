"""Chooses the next tokens of many slots in three Triton kernels: no sort, and nobody is waited for.

The first looks over all tiles of all rows beside each other, the second weighs them; in the third a
program draws for one row, and reads only tiles that hold what is likelier than what it drew. Scores
are made anew from the logits wherever they are wanted, so that nothing of a row's size is written.

The arithmetic is that of `sampling.sample`, to the bit: no product may be fused with a sum, fp32 is
divided as IEEE 754 says, and what is summed are whole numbers. It has been run in Triton's
interpreter and compiled for cards, but has not yet run on one.

G rows, S slots, V vocabulary, M masks; a tile is `TILE` ids of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.sampling import TILE, WORDS, SamplerArrays
from langchain_rwkv_state.runtime.sampling import CHOICE, DRAW

WARPS = 8
"""That share a tile where tiles are looked at beside each other."""

DRAWING_WARPS = 16
"""That draw for a row, tile by tile."""

# Parts of larger tensors, wherever they begin: nothing is to be compiled in the midst of answers.
_LOOSE = ["slot_at", "mask_at", "choose_at", "out_at"]

_CHOICE, _DRAW = tl.constexpr(CHOICE), tl.constexpr(DRAW)
_WORDS = tl.constexpr(WORDS)
_NO_GOAL = tl.constexpr(2**63 - 1)
_NOT_THERE = tl.constexpr(float("-inf"))


def sample(
    logits: Tensor,
    slot: Tensor,
    choose: Tensor,
    mask_at: Tensor,
    masks: Tensor,
    arrays: SamplerArrays,
    out: Tensor,
) -> None:
    """Looks over rows of logits, and chooses; see `sampling.sample`, of which it is the equal.

    Raises:
        ValueError: The logits are not contiguous, or are more rows than the arrays have room for.
    """
    rows, size = logits.shape
    tiles = arrays.tops.shape[-1]
    if not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous, got strides {logits.stride()}.")
    if rows > len(arrays.tops):
        raise ValueError(
            f"{rows} rows are to be sampled from, and there is room for {len(arrays.tops)}: make "
            "the SamplerArrays with more rows."
        )
    tile = min(TILE, triton.next_power_of_2(size))
    row = (logits, slot, mask_at, masks, arrays.presence, arrays.frequency, arrays.counts)
    fixed = {"size": size, "tile": tile, "tiles": tiles, "enable_fp_fusion": False}
    _look[(rows, tiles)](*row, arrays.tops, arrays.places, **fixed, num_warps=WARPS)
    drawing = (arrays.tops, choose, arrays.temperature, arrays.sums)
    wide = triton.next_power_of_2(tiles)
    _weigh[(rows, tiles)](*row, *drawing, **fixed, wide=wide, num_warps=WARPS)
    _choose[(rows,)](
        *(*row, *drawing, arrays.places),
        *(arrays.top_p, arrays.top_k, arrays.decay, arrays.key, arrays.n, arrays.last),
        arrays.counted,
        out,
        out.stride(0),
        **fixed,
        wide=wide,
        num_warps=DRAWING_WARPS,
    )


# Triton has no types
@triton.jit(do_not_specialize_on_alignment=_LOOSE)  # type: ignore[untyped-decorator]
def _look(
    logits_at: tl.tensor,
    slot_at: tl.tensor,
    mask_at: tl.tensor,
    masks_at: tl.tensor,
    presence_at: tl.tensor,
    frequency_at: tl.tensor,
    counts_at: tl.tensor,
    tops_at: tl.tensor,
    places_at: tl.tensor,
    size: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
) -> None:
    """Finds the highest logit and the highest score of a tile, and whether all is finite."""
    row, number = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slot_at + row)
    mask = tl.load(mask_at + row)
    presence = tl.load(presence_at + slot * _WORDS)
    frequency = tl.load(frequency_at + slot * _WORDS)
    ids = number * tile + tl.arange(0, tile)
    inside = ids < size
    logits = tl.load(logits_at + row * size + ids, mask=inside, other=_NOT_THERE).to(tl.float32)
    finite = tl.min(tl.where(inside & (tl.abs(logits) == float("inf")), 0, 1), 0)
    finite = tl.minimum(finite, tl.min((logits == logits).to(tl.int32), 0))
    top, place = tl.max(logits, 0, return_indices=True)
    tl.store(tops_at + row * 2 * tiles + number, top)
    tl.store(places_at + row * 3 * tiles + number, number * tile + place)
    tl.store(places_at + (row * 3 + 2) * tiles + number, finite)
    scores = _scores(
        logits_at + row * size,
        counts_at + slot * size,
        masks_at + tl.maximum(mask, 0) * ((size + 31) // 32),
        presence,
        frequency,
        mask,
        ids,
        size,
    )
    top, place = tl.max(scores, 0, return_indices=True)
    tl.store(tops_at + (row * 2 + 1) * tiles + number, top)
    tl.store(places_at + (row * 3 + 1) * tiles + number, number * tile + place)


@triton.jit(do_not_specialize_on_alignment=_LOOSE)  # type: ignore[untyped-decorator]
def _weigh(
    logits_at: tl.tensor,
    slot_at: tl.tensor,
    mask_at: tl.tensor,
    masks_at: tl.tensor,
    presence_at: tl.tensor,
    frequency_at: tl.tensor,
    counts_at: tl.tensor,
    tops_at: tl.tensor,
    choose_at: tl.tensor,
    temperature_at: tl.tensor,
    sums_at: tl.tensor,
    size: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    wide: tl.constexpr,
) -> None:
    """Sums what a tile weighs, before and after the temperature is applied."""
    row, number = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slot_at + row)
    temperature = tl.load(temperature_at + slot * _WORDS)
    if (tl.load(choose_at + row) != 0) & (temperature != 0.0):
        mask = tl.load(mask_at + row)
        presence = tl.load(presence_at + slot * _WORDS)
        frequency = tl.load(frequency_at + slot * _WORDS)
        each = tl.arange(0, wide)
        tops = tl.load(tops_at + (row * 2 + 1) * tiles + each, mask=each < tiles, other=_NOT_THERE)
        ids = number * tile + tl.arange(0, tile)
        scores = _scores(
            logits_at + row * size,
            counts_at + slot * size,
            masks_at + tl.maximum(mask, 0) * ((size + 31) // 32),
            presence,
            frequency,
            mask,
            ids,
            size,
        )
        masses, weights = _weights(tl.max(tops, 0), scores, temperature)
        tl.store(sums_at + row * 2 * tiles + number, tl.sum(masses, 0))
        tl.store(sums_at + (row * 2 + 1) * tiles + number, tl.sum(weights, 0))


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["out_stride"], do_not_specialize_on_alignment=_LOOSE
)
def _choose(
    logits_at: tl.tensor,
    slot_at: tl.tensor,
    mask_at: tl.tensor,
    masks_at: tl.tensor,
    presence_at: tl.tensor,
    frequency_at: tl.tensor,
    counts_at: tl.tensor,
    tops_at: tl.tensor,
    choose_at: tl.tensor,
    temperature_at: tl.tensor,
    sums_at: tl.tensor,
    places_at: tl.tensor,
    top_p_at: tl.tensor,
    top_k_at: tl.tensor,
    decay_at: tl.tensor,
    key_at: tl.tensor,
    n_at: tl.tensor,
    last_at: tl.tensor,
    counted_at: tl.tensor,
    out_at: tl.tensor,
    out_stride: tl.tensor,
    size: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    wide: tl.constexpr,
) -> None:
    """Chooses from a row, and takes note of what was chosen."""
    row = tl.program_id(0)
    slot = tl.load(slot_at + row)
    mask = tl.load(mask_at + row)
    presence = tl.load(presence_at + slot * _WORDS)
    frequency = tl.load(frequency_at + slot * _WORDS)
    temperature = tl.load(temperature_at + slot * _WORDS)
    logits_at += row * size
    counts_at += slot * size
    masks_at += tl.maximum(mask, 0) * ((size + 31) // 32)
    tops_at += row * 2 * tiles
    places_at += row * 3 * tiles
    sums_at += row * 2 * tiles
    n_at += slot * (_WORDS // 2)

    each = tl.arange(0, wide)
    there = each < tiles
    tops = tl.load(tops_at + each, mask=there, other=_NOT_THERE)
    best = tl.argmax(tops, 0)
    finite = tl.min(tl.load(places_at + 2 * tiles + each, mask=there, other=1), 0)
    tl.store(out_at + out_stride + row, tl.load(places_at + best))
    tl.store(out_at + 2 * out_stride + row, finite)
    tops_at += tiles
    tops = tl.load(tops_at + each, mask=there, other=_NOT_THERE)
    top, highest = tl.max(tops, 0, return_indices=True)
    chosen = tl.full([], -1, tl.int32)
    if (tl.load(choose_at + row) != 0) & (finite != 0) & (top > _NOT_THERE):
        n = tl.load(n_at)
        chosen = tl.load(places_at + tiles + highest)
        if temperature != 0.0:
            top_p = tl.load(top_p_at + slot * (_WORDS // 2))
            top_k = tl.load(top_k_at + slot * _WORDS)
            goal = tl.full([], _NO_GOAL, tl.int64)
            if top_p < 1.0:
                total = tl.sum(tl.load(sums_at + each, mask=there, other=0), 0)
                goal = tl.ceil(top_p * total.to(tl.float64)).to(tl.int64)
                goal = tl.maximum(tl.minimum(goal, total), 1)
            # Tiles that may hold what is likelier than what is drawn, where that matters.
            checked = tl.where((top_p < 1.0) | (top_k > 0), tiles, 0)
            bits = tl.load(key_at + slot * (_WORDS // 2)).to(tl.uint64, bitcast=True)
            bits = _mixed(bits + n.to(tl.uint64, bitcast=True) * _CHOICE)
            sums = tl.load(sums_at + tiles + each, mask=there, other=0)
            # What may be drawn still: a higher score than this, or as high a one and a lower id.
            least = tl.full([], _NOT_THERE, tl.float32)
            before = tl.full([], size, tl.int32)
            again = tl.full([], 1, tl.int32)
            while again != 0:
                bits += _DRAW
                place = tl.umulhi(_mixed(bits), tl.sum(sums, 0).to(tl.uint64)).to(tl.int64)
                passed = tl.cumsum(sums, 0) <= place
                place -= tl.sum(tl.where(passed, sums, 0), 0)
                number = tl.sum(passed.to(tl.int32), 0)
                ids = number * tile + tl.arange(0, tile)
                scores = _scores(
                    logits_at, counts_at, masks_at, presence, frequency, mask, ids, size
                )
                masses, weights = _weights(top, scores, temperature)
                within = (scores > least) | ((scores == least) & (ids < before))
                passed = tl.cumsum(tl.where(within, weights, 0), 0) <= place
                chosen = number * tile + tl.sum(passed.to(tl.int32), 0)
                least = tl.max(tl.where(ids == chosen, scores, _NOT_THERE), 0)

                mass = tl.full([], 0, tl.int64)
                count = tl.full([], 0, tl.int32)
                likelier_sums = tl.zeros([wide], tl.int64)
                equal_sums = tl.zeros([wide], tl.int64)
                for number in range(checked):
                    if tl.load(tops_at + number) >= least:
                        ids = number * tile + tl.arange(0, tile)
                        scores = _scores(
                            logits_at, counts_at, masks_at, presence, frequency, mask, ids, size
                        )
                        masses, weights = _weights(top, scores, temperature)
                        likelier = scores > least
                        mass += tl.sum(tl.where(likelier, masses, 0), 0)
                        found = tl.sum(tl.where(likelier, weights, 0), 0)
                        likelier_sums = tl.where(each == number, found, likelier_sums)
                        if top_k > 0:
                            equal = (scores == least) & (ids < chosen)
                            count += tl.sum((likelier | equal).to(tl.int32), 0)
                            found = tl.sum(tl.where(equal, weights, 0), 0)
                            equal_sums = tl.where(each == number, found, equal_sums)
                far = mass >= goal
                deep = (top_k > 0) & (count >= top_k)
                again = (far | deep).to(tl.int32)
                before = tl.where(far, 0, chosen)
                sums = likelier_sums + tl.where(far, 0, equal_sums)
        tl.store(n_at, n + 1)
        tl.store(last_at + slot, chosen)
        if (presence != 0.0) | (frequency != 0.0):
            decay = tl.load(decay_at + slot * _WORDS)
            added = tl.load(counted_at + chosen)
            tl.debug_barrier()  # all have read the counts
            for number in range(tiles):
                ids = number * tile + tl.arange(0, tile)
                counts = tl.load(counts_at + ids, mask=ids < size, other=-1.0)
                counts = tl.where(counts >= 0.0, counts * decay, counts)
                counts = tl.where(ids == chosen, tl.maximum(counts, 0.0) + added, counts)
                tl.store(counts_at + ids, counts, mask=ids < size)
    tl.store(out_at + row, chosen)


@triton.jit  # type: ignore[untyped-decorator]
def _scores(
    logits_at: tl.tensor,
    counts_at: tl.tensor,
    words_at: tl.tensor,
    presence: tl.tensor,
    frequency: tl.tensor,
    mask: tl.tensor,
    ids: tl.tensor,
    size: tl.constexpr,
) -> tl.tensor:
    """Returns logits less their penalties, and -inf for what must not be chosen."""
    inside = ids < size
    scores = tl.load(logits_at + ids, mask=inside, other=_NOT_THERE).to(tl.float32)
    if (presence != 0.0) | (frequency != 0.0):
        counts = tl.load(counts_at + ids, mask=inside, other=-1.0)
        scores = tl.where(counts >= 0.0, scores - (presence + frequency * counts), scores)
    if mask >= 0:
        words = tl.load(words_at + (ids >> 5), mask=inside, other=0)
        scores = tl.where(((words >> (ids & 31)) & 1) != 0, scores, _NOT_THERE)
    return scores


@triton.jit  # type: ignore[untyped-decorator]
def _weights(
    top: tl.tensor, scores: tl.tensor, temperature: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Returns what scores weigh before and after the temperature is applied, in whole 2^-36."""
    below = top - scores
    masses = _whole(_exponential(below))
    weights = masses
    if temperature != 1.0:
        weights = _whole(_exponential(tl.div_rn(below, temperature)))
    return masses, weights


@triton.jit  # type: ignore[untyped-decorator]
def _exponential(below: tl.tensor) -> tl.tensor:
    """Returns ``exp(-below)`` by Cephes' expf."""
    x = tl.minimum(below, 32.0)
    n = (x * 1.44269504088896341 + 12582912.0) - 12582912.0
    f = (n * 0.693359375 - x) + n * -2.12194440e-4
    p = f * 1.9875691500e-4 + 1.3981999507e-3
    p = p * f + 8.3334519073e-3
    p = p * f + 4.1665795894e-2
    p = p * f + 1.6666665459e-1
    p = p * f + 5.0000001201e-1
    power = ((p * f) * f + f) + 1.0
    bits = power.to(tl.int32, bitcast=True) - (n.to(tl.int32) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _whole(mass: tl.tensor) -> tl.tensor:
    """Returns fp32 numbers of 0 to 1 in whole 2^-36, without fp64, at which many cards are slow."""
    scaled = mass * 68719476736.0
    small = (scaled + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000  # to the nearest whole
    bits = scaled.to(tl.int32, bitcast=True)
    digits = ((bits & 0x7FFFFF) | 0x800000).to(tl.int64)
    large = digits << tl.maximum((bits >> 23) - 150, 0).to(tl.int64)
    return tl.where(scaled < 8388608.0, small.to(tl.int64), large)


@triton.jit  # type: ignore[untyped-decorator]
def _mixed(bits: tl.tensor) -> tl.tensor:
    """Returns splitmix64's number behind a state."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB
    return bits ^ (bits >> 31)
