"""Computes the recurrence of RWKV-7 in plain PyTorch: many states, many tokens of one, or both.

With S the WKV state ``[value, key]``, decay w, receptance r, and a = -kk, b = kk * rate the removal
and the replacement key (Peng et al. 2025, "RWKV-7 Goose", section 4.1, there with S transposed):

    S = S diag(w) + (S a) b' + v k'        y = S r

`step` and `chunked` change nothing that they are given; `recur` advances states in their slots. The
chunk must not be longer: keys are divided by the running product of decays inside one, which is
exp(-0.607 * 16) = 6e-5 at worst; at 64 it would leave the range in which fp32 can divide.

B states, T tokens of G segments, S slots, C chunks, L chunk length, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 16


class Tokens(NamedTuple):
    """What the recurrence takes of each token: six tensors ``[tokens, H, N]``, fp32.

    Attributes:
        r: Receptance.
        w: Decay, in (0.545, 1).
        k: Key.
        v: Value.
        a: Removal key, negative.
        b: Replacement key.
    """

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor

    def at(self, rows: slice | Tensor) -> Tokens:
        """Returns some of the tokens."""
        return Tokens(*(part[rows] for part in self))


@dataclass(frozen=True)
class Places:
    """Where T tokens stand and where their states are: index tensors on the device.

    They are made once for a pass, so that nothing in it waits for the device.

    Attributes:
        start: Where each segment begins, and T last, ``[G + 1]``.
        slot: Each segment's slot, ``[G]``.
        first: Each segment's first row, ``[G]``.
        last: Each segment's last row, ``[G]``.
        longest: Most rows of a segment.
        single: Rows and slots of the segments of one row, ``None`` where there are none.
        runs: Rows and slot of each segment of more.
    """

    start: Tensor
    slot: Tensor
    first: Tensor
    last: Tensor
    longest: int
    single: tuple[Tensor, Tensor] | None
    runs: tuple[tuple[slice, int], ...]

    @classmethod
    def of(cls, start: Sequence[int], slot: Sequence[int], device: torch.device) -> Places:
        """Returns the places of segments.

        Args:
            start: Where each begins, and T last.
            slot: Each one's slot.
            device: Where the states are.
        """
        spans = [slice(*pair) for pair in pairwise(start)]
        lengths = [span.stop - span.start for span in spans]
        named = list(zip(spans, slot, lengths, strict=True))
        rows = [span.start for span, _, length in named if length == 1]
        slots = [into for _, into, length in named if length == 1]
        starts = torch.tensor(start, device=device)
        return cls(
            starts,
            torch.tensor(slot, device=device),
            starts[:-1],
            starts[1:] - 1,
            max(lengths),
            (torch.tensor(rows, device=device), torch.tensor(slots, device=device))
            if rows
            else None,
            tuple((span, into) for span, into, length in named if length > 1),
        )

    @classmethod
    def of_each(cls, slot: Tensor) -> Places:
        """Returns the places of one token in each of G slots, whose numbers may change later.

        Args:
            slot: ``[G]``, int64; kept, not copied.
        """
        start = torch.arange(len(slot) + 1, device=slot.device)
        return cls(start, slot, start[:-1], start[:-1], 1, (start[:-1], slot), ())


def recur(tokens: Tokens, wkv: Tensor, places: Places) -> Tensor:
    """Reads tokens into slots: single ones by the step, segments of more in the chunked form.

    Args:
        tokens: T tokens.
        wkv: ``[S, H, N, N]``, fp32; the named slots are updated in place.
        places: Which tokens belong together, and their slots.

    Returns:
        The outputs ``[T, H, N]``.
    """
    y = torch.empty_like(tokens.v)
    for span, slot in places.runs:
        y[span], wkv[slot] = chunked(tokens.at(span), wkv[slot])
    if places.single:
        rows, slots = places.single
        y[rows], wkv[slots] = step(tokens.at(rows), wkv[slots])
    return y


def step(tokens: Tokens, state: Tensor) -> tuple[Tensor, Tensor]:
    """Reads one token into each of B states.

    Args:
        tokens: B tokens.
        state: ``[B, H, N, N]``, fp32.

    Returns:
        The outputs ``[B, H, N]`` and the states after.
    """
    r, w, k, v, a, b = tokens
    removed = (state @ a.unsqueeze(-1)) * b.unsqueeze(-2)
    state = state * w.unsqueeze(-2) + removed + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def chunked(tokens: Tokens, state: Tensor) -> tuple[Tensor, Tensor]:
    """Reads T tokens into one state, a chunk at a time; equals T steps within 4e-6.

    Inside a chunk let W_t be the product of the decays up to t. Scaled by these (a by W before its
    token, r by W, b and k by 1/W), the recurrence of a whole chunk is one unit-triangular system
    for U, the rows of what is removed:

        U = A S' + tril(A B', -1) U + tril(A K', -1) V
        Y = R S' + tril(R B') U + tril(R K') V         S = (S + U' B + V' K) diag(W_L)

    Args:
        tokens: T tokens.
        state: ``[H, N, N]``, fp32.

    Returns:
        The outputs ``[T, H, N]`` and the state after.
    """
    count = len(tokens.r)
    pad = -count % CHUNK

    def split(x: Tensor, fill: float = 0.0) -> Tensor:
        x = functional.pad(x, (0, 0, 0, 0, 0, pad), value=fill)
        return x.view(-1, CHUNK, *x.shape[1:]).transpose(1, 2)  # [C, H, L, N]

    r, k, v, a, b = map(split, (tokens.r, tokens.k, tokens.v, tokens.a, tokens.b))
    log_w = split(tokens.w, 1.0).log()
    until = log_w.cumsum(2)
    whole = until[:, :, -1:].exp()
    a, r = a * (until - log_w).exp(), r * until.exp()
    b, k = b * (-until).exp(), k * (-until).exp()
    strict, lower = _below(r, -1), _below(r, 0)
    removal = a @ b.mT * strict
    solved = torch.linalg.solve_triangular(
        torch.eye(CHUNK, device=r.device) - removal,
        torch.cat([a, (a @ k.mT * strict) @ v], -1),
        upper=False,
        unitriangular=True,
    )
    from_state, from_values = solved.chunk(2, -1)
    rb, values = r @ b.mT * lower, (r @ k.mT * lower) @ v
    outputs = []
    for c in range(len(r)):  # what depends on the state that the chunk before left
        u = from_state[c] @ state.mT + from_values[c]
        outputs.append(r[c] @ state.mT + rb[c] @ u + values[c])
        state = (state + u.mT @ b[c] + v[c].mT @ k[c]) * whole[c]
    return torch.stack(outputs).transpose(1, 2).flatten(0, 1)[:count], state


def _below(like: Tensor, diagonal: int) -> Tensor:
    return torch.ones(CHUNK, CHUNK, device=like.device).tril(diagonal)
