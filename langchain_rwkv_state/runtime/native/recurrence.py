"""The recurrence of RWKV-7 in plain PyTorch: one token of many states, or many tokens of one.

With S the WKV state ``[value, key]``, decay w, receptance r, and a = -kk, b = kk * rate the removal
and the replacement key (Peng et al. 2025, "RWKV-7 Goose", section 4.1, there with S transposed):

    S = S diag(w) + (S a) b' + v k'        y = S r

Neither form changes what it is given. The easy mistake is to lengthen the chunk: keys are divided
by the running product of decays inside one, which is exp(-0.607 * 16) = 6e-5 at worst; at 64 it
would leave the range in which fp32 can divide.

B states, T tokens, C chunks, L chunk length, H heads, N head size.
"""

from __future__ import annotations

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
