"""Chooses the next tokens of many slots where the logits are: on the card.

It takes the CPU's token, id for id, for equal logits: what is said in `engine/choices.py` holds
here to the bit. Penalties and the numbers of choices are kept for each slot, since a step may be
under way before the host knows what the last one chose.

`sample` in plain PyTorch is the oracle of the kernels in `sampling_kernels.py`, and what runs where
there is no Triton. It computes all rows at once and asks after each draw whether all are done, for
which the host waits: it cannot be recorded.

G rows, S slots, V vocabulary, M masks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.staging import sent
from langchain_rwkv_state.runtime.sampling import CHOICE, DRAW, SamplerState

TILE = 2048
"""Ids of a row that are looked at at a time; the kernels keep what they found of each tile."""

# A slot's settings lie together, so that one copy loads them all.
_SETTINGS = np.dtype(
    [
        *((name, np.float32) for name in ("temperature", "presence", "frequency", "decay")),
        ("top_p", np.float64),
        ("key", np.uint64),
        ("n", np.int64),
        ("top_k", np.int32),
        ("unused", np.int32),
    ]
)
_FIELDS = frozenset(_SETTINGS.names or ())
WORDS = _SETTINGS.itemsize // 4
"""From one slot's setting to the next one's, in words of 32 bits."""

_NOT_THERE = float("-inf")
_NO_GOAL = 2**63 - 1
_LOG2_E = 1.44269504088896341
_LN_2 = (0.693359375, -2.12194440e-4)
# Of Cephes' expf.
_FIRST, *_REST = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)


class SamplerArrays:
    """What decides the choices of each slot, on a device.

    Every array has one row more than there are slots: rows of logits that are only padding name
    slot S.

    Args:
        slots: S.
        vocab_size: V.
        device: Where the logits are.
        rows: Rows that are sampled from at a time, at most; ``None`` for as many as slots.

    Attributes:
        temperature: ``[S + 1]``, fp32; the fields are those of `SamplerState`.
        presence: As the temperature.
        frequency: As the temperature.
        decay: As the temperature.
        top_p: ``[S + 1]``, fp64.
        top_k: ``[S + 1]``, int32.
        key: ``[S + 1]``, int64, the bits of an unsigned number.
        n: ``[S + 1]``, int64.
        last: The id that the slot chose last, ``[S + 1]``, int32; `load` leaves it as it is.
        counts: How often each id counts, -1 for one that was never seen: ``[S + 1, V]``, fp32. Of
            a slot without penalties it means nothing.
        counted: What each token adds to its count, ``[V]``, fp32: `runtime.sampling.increments` of
            a tokenizer's pieces; 1 for all until they are copied into it.
        spare: S.
        tops: For the kernels: of each tile the highest logit and the highest score,
            ``[rows, 2, tiles]``, fp32.
        places: The ids of both, and whether all of a tile is finite: ``[rows, 3, tiles]``, int32.
        sums: Masses and weights of each tile, ``[rows, 2, tiles]``, int64.
    """

    def __init__(
        self,
        slots: int,
        vocab_size: int,
        device: torch.device | str,
        rows: int | None = None,
    ) -> None:
        self.spare, rows = slots, slots if rows is None else rows
        self._settings = torch.zeros(slots + 1, WORDS // 2, dtype=torch.int64, device=device)
        singles, doubles = (self._settings.view(each) for each in (torch.float32, torch.float64))
        self.temperature, self.presence, self.frequency, self.decay = singles[:, :4].unbind(1)
        self.top_p = doubles[:, 2]
        self.key, self.n = self._settings[:, 3:5].unbind(1)
        self.top_k = self._settings.view(torch.int32)[:, 10]
        self.last = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.counts = torch.full((slots + 1, vocab_size), -1.0, device=device)
        self.counted = torch.ones(vocab_size, device=device)
        tiles = -(-vocab_size // TILE)
        self.tops = torch.zeros(rows, 2, tiles, device=device)
        self.places = torch.zeros(rows, 3, tiles, dtype=torch.int32, device=device)
        self.sums = torch.zeros(rows, 2, tiles, dtype=torch.int64, device=device)

    def load(self, slot: int, state: SamplerState) -> None:
        """Puts a sampler's state into a slot, behind what the device has to do; nobody waits."""
        settings = np.zeros(1, dtype=_SETTINGS)
        for name, value in (
            state._replace(top_k=min(state.top_k, len(self.counted)))._asdict().items()
        ):
            if name in _FIELDS:
                settings[name] = value
        self._settings[slot].copy_(self._sent(settings.view(np.int64)), non_blocking=True)
        if state.presence or state.frequency:
            counts = self.counts[slot].fill_(-1)
            if len(state.ids):
                counts.index_copy_(0, self._sent(state.ids), self._sent(state.counts))

    def _sent(self, array: np.ndarray) -> Tensor:
        """Returns an array on the device."""
        return sent(torch.from_numpy(array), self.counts.device)


def sample(
    logits: Tensor,
    slot: Tensor,
    choose: Tensor,
    mask_at: Tensor,
    masks: Tensor,
    arrays: SamplerArrays,
    out: Tensor,
) -> None:
    """Looks over rows of logits, and chooses from those that are to be chosen from.

    Where a token is chosen, the slot's count of it, its `n` and its `last` go on; else they stay.

    Args:
        logits: ``[G, V]``, fp16, bf16 or fp32, contiguous.
        slot: Of each row: ``[G]``, int32. Each slot at most once, but for S, which is padding's.
        choose: ``[G]``, int32; 0 for a row that is only looked over, as padding is.
        mask_at: Which mask says what may be chosen: ``[G]``, int32, -1 for none.
        masks: ``[M, ceil(V / 32)]``, int32, bit ``i % 32`` of word ``i // 32`` for id i; M is at
            least 1.
        arrays: What the slots choose by.
        out: Takes the chosen ids, -1 where none was wanted, or could be; the id of the highest
            logit, the first of equals; and 1 where all logits are finite numbers, else 0, and
            nothing is chosen: ``[3, G]``, int32.
    """
    at, ids = slot.long(), torch.arange(logits.shape[1], device=logits.device)
    scores = logits.float()
    out[1] = scores.argmax(1)
    finite = scores.isfinite().all(1)
    out[2] = finite

    counts = arrays.counts[at]
    penalties = _column(arrays.presence, at) + _column(arrays.frequency, at) * counts
    scores = torch.where(counts >= 0, scores - penalties, scores)
    words = masks[mask_at.clamp(min=0).long()]
    allowed = (words[:, ids >> 5] >> (ids & 31)) & 1
    scores.masked_fill_((allowed == 0) & (mask_at >= 0)[:, None], _NOT_THERE)
    highest = scores.argmax(1, keepdim=True)
    top = scores.gather(1, highest)
    wanted = (choose != 0) & finite & (top[:, 0] > _NOT_THERE)

    temperature = _column(arrays.temperature, at)
    drawn = _draw(scores, top, at, arrays, wanted & (temperature[:, 0] != 0))
    token = torch.where(temperature == 0, highest, drawn)
    out[0] = torch.where(wanted, token[:, 0], -1)
    arrays.last[at] = torch.where(wanted, out[0], arrays.last[at])
    arrays.n[at] += wanted
    seen = torch.where(counts >= 0, counts * _column(arrays.decay, at), counts)
    seen = torch.where(ids == token, seen.clamp(min=0) + arrays.counted[token], seen)
    counted = wanted & ((arrays.presence[at] != 0) | (arrays.frequency[at] != 0))
    arrays.counts[at] = torch.where(counted[:, None], seen, counts)


def _draw(scores: Tensor, top: Tensor, at: Tensor, arrays: SamplerArrays, wanted: Tensor) -> Tensor:
    """Returns the token that each row draws, ``[G, 1]``; of no meaning where none is wanted."""
    ids = torch.arange(scores.shape[1], device=scores.device)
    temperature = _column(arrays.temperature, at)
    below = top - scores
    masses = _whole(_exponential(below))
    weights = _whole(_exponential(below / torch.where(temperature == 0, 1, temperature)))
    top_p, top_k = _column(arrays.top_p, at), _column(arrays.top_k, at)
    total = masses.sum(1, keepdim=True)
    goal = (top_p * total.double()).ceil().long().minimum(total).clamp(min=1)
    goal = torch.where(top_p < 1, goal, _NO_GOAL)
    bits = _mixed(_column(arrays.key, at) + _column(arrays.n, at) * _signed(CHOICE))

    # What may be drawn still: ids with a higher score than this, or as high a one and a lower id.
    least = torch.full_like(top, _NOT_THERE)
    before = torch.full_like(bits, len(ids))
    chosen, left = torch.zeros_like(bits), wanted[:, None]
    while bool(left.any()):
        bits = bits + _signed(DRAW)
        within = (scores > least) | ((scores == least) & (ids < before))
        sums = torch.where(within, weights, 0).cumsum(1)
        place = _high_product(_mixed(bits), sums[:, -1:])
        token = torch.searchsorted(sums, place, right=True).clamp(max=len(ids) - 1)
        chosen = torch.where(left, token, chosen)
        least = scores.gather(1, token)
        likelier = scores > least
        ahead = likelier | ((scores == least) & (ids < token))
        far = torch.where(likelier, masses, 0).sum(1, keepdim=True) >= goal
        deep = (top_k > 0) & (ahead.sum(1, keepdim=True) >= top_k)
        before = torch.where(far, 0, token)
        left = left & (far | deep)
    return chosen


def _column(setting: Tensor, at: Tensor) -> Tensor:
    return setting[at][:, None]


def _exponential(below: Tensor) -> Tensor:
    """Returns ``exp(-below)``, each product and sum rounded on its own."""
    x = below.clamp(max=32.0)
    n = (x * _LOG2_E).round()
    f = (n * _LN_2[0] - x) + n * _LN_2[1]
    p = torch.full_like(f, _FIRST)
    for coefficient in _REST:
        p = p * f + coefficient
    power = ((p * f) * f + f) + 1.0
    return (power.view(torch.int32) - (n.int() << 23)).view(torch.float32)


def _whole(mass: Tensor) -> Tensor:
    """Returns fp32 numbers of 0 to 1 in whole 2^-36."""
    return (mass.double() + 98304.0).view(torch.int64) - 0x40F8000000000000


def _signed(number: int) -> int:
    """Returns the number whose 64 bits, read with a sign, are an unsigned one's."""
    return number - 2**64 if number >= 2**63 else number


def _mixed(bits: Tensor) -> Tensor:
    """Returns splitmix64's numbers behind states: int64 for unsigned numbers, which wraps."""
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    shifted: Tensor = (bits >> count) & (2 ** (64 - count) - 1)
    return shifted


def _high_product(bits: Tensor, total: Tensor) -> Tensor:
    """Returns ``bits * total >> 64``: unsigned bits, and a total below 2^58."""
    high, low = _shifted(bits, 32), bits & (2**32 - 1)
    upper, lower = total >> 27, total & (2**27 - 1)
    carried = (low * upper + (low * lower >> 27)) >> 5  # low * total >> 32
    return (high * upper + ((high * lower + carried) >> 27)) >> 5
