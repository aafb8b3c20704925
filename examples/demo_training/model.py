"""RWKV-7 (x070) as a trainable PyTorch module whose `state_dict` has BlinkDL's tensor names.

It is the training twin of the inference code, not a replacement for it: no quantisation, no
kernels, float32 only. The recurrence runs in chunks of 16 tokens made of plain matrix products, so
a machine with Python alone can train. Do not lengthen the chunk: inside one, keys
are divided by the running product of decays, which reaches exp(-0.607 * 16) = 6e-5 at worst; at 64
it would leave the range in which float32 can divide.

B batch, T time, D width, H heads, N head size (D = H * N), L chunk length, C chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import fast

CHUNK = 16
DECAY_SCALE = -0.606531  # -exp(-0.5), as the official code has it
GROUP_NORM_EPS = 64e-5


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        vocab: Number of tokens.
        layers: Number of blocks.
        width: Width of the residual stream.
        head: Width of a head.
        lora: Inner widths of the four low-rank maps: decay, in-context rate, value mix, gate.
        ffn: Inner width of the channel mix.
    """

    vocab: int = 640
    layers: int = 6
    width: int = 128
    head: int = 64
    lora: tuple[int, int, int, int] = (16, 16, 16, 32)
    ffn: int = 512

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.width // self.head


@dataclass
class LayerState:
    """What one block carries from token to token.

    Attributes:
        att_x: The time mix's last input, (B, D).
        wkv: The transposed matrix state, keys by values, (B * H, N, N).
        ffn_x: The channel mix's last input, (B, D).
    """

    att_x: Tensor
    wkv: Tensor
    ffn_x: Tensor


class _Scan(torch.autograd.Function):
    """P[c + 1] = M[c] @ P[c] + Q[c]; gives every P[c] from P[0] on, the last one included."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, q: Tensor, p0: Tensor) -> Tensor:
        p = torch.empty((m.shape[0] + 1, *m.shape[1:]), dtype=m.dtype)
        p[0] = p0
        for c in range(m.shape[0]):
            torch.baddbmm(q[c], m[c], p[c], out=p[c + 1])
        ctx.save_for_backward(m, p)
        return p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, p = ctx.saved_tensors
        g = grads[0].clone()
        mt = m.transpose(-1, -2)
        for c in range(m.shape[0] - 1, -1, -1):
            g[c].baddbmm_(mt[c], g[c + 1])
        return torch.matmul(g[1:], p[:-1].transpose(-1, -2)), g[1:], g[0]


def wkv_naive(
    r: Tensor, logw: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p0: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence one token at a time: S = S diag(w) + S a b' + v k', y = S r.

    Args:
        r: Receptance, (B, T, H, N), as are `logw`, `k`, `v`, `a`, `b`.
        logw: Logarithm of the decay.
        k: Keys.
        v: Values.
        a: Minus the normalised keys.
        b: The normalised keys times the in-context rate.
        p0: The state before, transposed, (B * H, N, N).

    Returns:
        The outputs (B, T, H, N) and the state after.
    """
    bsz, t, h, n = r.shape
    p = p0.view(bsz, h, n, n)
    out = []
    w = logw.exp()
    for i in range(t):
        sa = a[:, i].unsqueeze(-2) @ p
        p = (
            p * w[:, i].unsqueeze(-1)
            + b[:, i].unsqueeze(-1) * sa
            + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
        )
        out.append((r[:, i].unsqueeze(-2) @ p).squeeze(-2))
    return torch.stack(out, 1), p.reshape(bsz * h, n, n)


def wkv_chunked(
    r: Tensor, logw: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p0: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as `wkv_naive`, a chunk at a time; T must be a multiple of the chunk length."""
    bsz, t, h, n = r.shape
    chunks, length = t // CHUNK, CHUNK

    def split(x: Tensor) -> Tensor:
        x = x.view(bsz, chunks, length, h, n).permute(1, 0, 3, 2, 4)
        return x.reshape(chunks, bsz * h, length, n)

    r, logw, k, v, a, b = (split(x) for x in (r, logw, k, v, a, b))
    cum = logw.cumsum(2)
    inv = torch.exp(-cum)
    last = torch.exp(cum[:, :, -1:])
    ar = torch.cat([a * torch.exp(cum - logw), r * torch.exp(cum)], 2)
    bk = torch.cat([b * inv, k * inv], 2)
    gram = torch.matmul(ar, bk.transpose(-1, -2)) * _gram_mask(length)
    low, ak = gram[..., :length, :length], gram[..., :length, length:]
    inverse = _unit_lower_inverse(low)
    solved = torch.matmul(
        inverse, torch.cat([ar[..., :length, :], torch.matmul(ak, v)], -1)
    )  # (C, BH, L, 2N): what U takes from the state, and what it takes from the values
    bkd = (bk * last).transpose(-1, -2)
    right = torch.cat([solved, torch.cat([torch.zeros_like(v), v], -1)], 2)
    mq = torch.matmul(bkd, right)
    m = mq[..., :n] + torch.diag_embed(last.squeeze(2))
    p = _Scan.apply(m, mq[..., n:], p0)  # type: ignore[no-untyped-call]
    start = p[:-1]
    u = torch.matmul(solved[..., :n], start) + solved[..., n:]
    y = torch.matmul(ar[..., length:, :], start) + torch.matmul(
        gram[..., length:, :], torch.cat([u, v], 2)
    )
    y = y.view(chunks, bsz, h, length, n).permute(1, 0, 3, 2, 4).reshape(bsz, t, h, n)
    return y, p[-1]


def recurrence(
    r: Tensor, logw: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p0: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence by whichever way is fastest here; the numbers are the same."""
    if r.shape[1] % CHUNK != 0:
        return wkv_naive(r, logw, k, v, a, b, p0)
    if r.shape[-1] == fast.HEAD and not p0.requires_grad and fast.library() is not None:
        y, p = fast.FastWKV.apply(r, logw.exp(), k, v, a, b, p0)  # type: ignore[no-untyped-call]
        return y, p
    return wkv_chunked(r, logw, k, v, a, b, p0)


def _gram_mask(length: int) -> Tensor:
    strict = torch.tril(torch.ones(length, length), -1)
    full = torch.tril(torch.ones(length, length))
    return torch.cat([torch.cat([strict, strict], 1), torch.cat([full, full], 1)], 0)


def _unit_lower_inverse(low: Tensor) -> Tensor:
    """(I - low)^-1 for a strictly lower `low` of size 16, by doubling: low^16 is zero."""
    eye = torch.eye(low.shape[-1])
    out = eye + low
    power = low
    for _ in range(int(math.log2(low.shape[-1])) - 1):
        power = torch.matmul(power, power)
        out = out + torch.matmul(out, power)
    return out


class TimeMix(nn.Module):
    """The attention of RWKV-7; equals `RWKV_x070_TMix_seq` of the `rwkv` package."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        d, h, n = shape.width, shape.heads, shape.head
        self.layer, self.heads, self.head = layer, h, n
        depth = layer / max(1, shape.layers - 1)
        rest = 1.0 - layer / shape.layers
        ramp = torch.arange(d) / d
        linear = torch.arange(d) / (d - 1) - 0.5
        zigzag = ((torch.arange(d) % n) - (n - 1) / 2) / ((n - 1) / 2)
        zigzag = zigzag * zigzag.abs()

        def mix(power: float) -> nn.Parameter:
            return nn.Parameter((1.0 - ramp ** (power * rest)).view(1, 1, d))

        self.x_r, self.x_w, self.x_k = mix(0.2), mix(0.9), mix(0.7)
        self.x_v, self.x_a, self.x_g = mix(0.7), mix(0.9), mix(0.2)
        lw, la, lv, lg = shape.lora
        decay = -6 + 6 * (torch.arange(d) / (d - 1)) ** (1 + depth**0.3)
        self.w0 = nn.Parameter((decay + 0.5 + zigzag * 2.5).view(1, 1, d))
        self.w1, self.w2 = _low_rank(d, lw)
        self.a0 = nn.Parameter((-0.19 + zigzag * 0.3 + linear * 0.4).view(1, 1, d))
        self.a1, self.a2 = _low_rank(d, la)
        if layer > 0:  # the first block's values are the ones that later blocks mix in
            self.v0 = nn.Parameter((0.73 - linear * 0.4).view(1, 1, d))
            self.v1, self.v2 = _low_rank(d, lv)
        self.g1, self.g2 = _low_rank(d, lg)
        self.k_k = nn.Parameter((0.71 - linear * 0.1).view(1, 1, d))
        self.k_a = nn.Parameter(torch.full((1, 1, d), 1.02))
        self.r_k = nn.Parameter(torch.full((h, n), -0.04))
        self.receptance = _linear(d, d, 0.5 / d**0.5)
        self.key = _linear(d, d, 0.05 / d**0.5)
        self.value = _linear(d, d, 0.5 / d**0.5)
        self.output = _linear(d, d, 0.0)
        self.ln_x = nn.GroupNorm(h, d, eps=GROUP_NORM_EPS)
        self.ln_x.weight.data.fill_(((1 + layer) / shape.layers) ** 0.7)

    def forward(
        self, x: Tensor, shifted: Tensor, v_first: Tensor | None, p0: Tensor, live: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) and the inputs one token back -> output, first values, state after."""
        bsz, t, d = x.shape
        h, n = self.heads, self.head
        maps = [self.receptance.weight.T, self.key.weight.T, self.value.weight.T]
        maps += [self.w1, self.a1, self.g1]
        mixes = [self.x_r, self.x_k, self.x_v, self.x_w, self.x_a, self.x_g]
        if self.layer > 0:
            maps.append(self.v1)
            mixes.append(self.x_v)
        weight = torch.cat(maps, 1)
        mixed = torch.cat([w * m.view(d, 1) for w, m in zip(maps, mixes, strict=True)], 1)
        # (x + (shifted - x) * mix) @ weight for all maps at once, as one product.
        both = torch.cat([x, shifted], -1) @ torch.cat([weight - mixed, mixed], 0)
        parts = torch.split(both, [m.shape[1] for m in maps], -1)
        r, k, v = parts[:3]
        logw = DECAY_SCALE * torch.sigmoid(self.w0 + torch.tanh(parts[3]) @ self.w2)
        a = torch.sigmoid(self.a0 + parts[4] @ self.a2)
        g = torch.sigmoid(parts[5]) @ self.g2
        kk = functional.normalize((k * self.k_k).view(bsz, t, h, n), dim=-1, p=2.0).view(bsz, t, d)
        k = k * (1 + (a - 1) * self.k_a)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + parts[6] @ self.v2)
        key_in = k
        if live is not None:  # a padded position leaves the state as it was
            logw, kk, key_in = logw * live, kk * live, k * live
        pad = (-t) % CHUNK if t > 2 else 0
        seq = [r, logw, key_in, v, -kk, kk * a]
        if pad:
            seq = [functional.pad(s, (0, 0, 0, pad)) for s in seq]
        r_, w_, k_, v_, a_, b_ = (s.reshape(bsz, t + pad, h, n) for s in seq)
        y, p = recurrence(r_, w_, k_, v_, a_, b_, p0)
        y = self.ln_x(y[:, :t].reshape(bsz * t, d)).view(bsz, t, d)
        bonus = (r * k * self.r_k.view(1, 1, d)).view(bsz, t, h, n).sum(-1, keepdim=True)
        y = y + (bonus * v.view(bsz, t, h, n)).view(bsz, t, d)
        return (y * g) @ self.output.weight.T, v_first, p


class ChannelMix(nn.Module):
    """The feed-forward half of a block: squared ReLU of a token-shifted input."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        d = shape.width
        rest = 1.0 - layer / shape.layers
        self.x_k = nn.Parameter((1.0 - (torch.arange(d) / d) ** (rest**4)).view(1, 1, d))
        self.key = _linear(d, shape.ffn, 0.5 / d**0.5)
        self.value = _linear(shape.ffn, d, 0.0)

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        """(B, T, D) and the inputs one token back -> (B, T, D)."""
        k = torch.lerp(x, shifted, self.x_k)
        return functional.relu(k @ self.key.weight.T).square() @ self.value.weight.T


class Block(nn.Module):
    """One layer: time mix and channel mix, each behind a layer norm."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(shape.width)
        self.ln1 = nn.LayerNorm(shape.width)
        self.ln2 = nn.LayerNorm(shape.width)
        self.att = TimeMix(shape, layer)
        self.ffn = ChannelMix(shape, layer)


class RWKV7(nn.Module):
    """The whole model, for sequences in training and for pieces of them in evaluation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.emb = nn.Embedding(shape.vocab, shape.width)
        self.emb.weight.data.uniform_(-1e-4, 1e-4)
        self.blocks = nn.ModuleList(Block(shape, i) for i in range(shape.layers))
        self.ln_out = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        gain = 0.5 * max(1.0, math.sqrt(shape.vocab / shape.width))
        nn.init.orthogonal_(self.head.weight, gain=gain)

    def zero_state(self, batch: int) -> list[LayerState]:
        """The state of `batch` conversations in which nothing was said yet."""
        d, h, n = self.shape.width, self.shape.heads, self.shape.head
        return [
            LayerState(torch.zeros(batch, d), torch.zeros(batch * h, n, n), torch.zeros(batch, d))
            for _ in range(self.shape.layers)
        ]

    def hidden(
        self, ids: Tensor, state: list[LayerState], lengths: Tensor | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """Runs the blocks over (B, T) ids.

        Args:
            ids: Token ids.
            state: The state before.
            lengths: How many ids of each row count, (B,); the rest is padding and leaves no trace.

        Returns:
            The last block's output (B, T, D) and the state after.
        """
        t = ids.shape[1]
        live = None
        if lengths is not None:
            live = (torch.arange(t)[None, :] < lengths[:, None]).unsqueeze(-1).float()
        blocks = cast("list[Block]", list(self.blocks))
        x: Tensor = blocks[0].ln0(self.emb(ids))
        v_first: Tensor | None = None
        after = []
        for block, s in zip(blocks, state, strict=True):
            xx = block.ln1(x)
            out, v_first, p = block.att(xx, _shift(xx, s.att_x), v_first, s.wkv, live)
            x = x + out
            xf = block.ln2(x)
            x = x + block.ffn(xf, _shift(xf, s.ffn_x))
            after.append(LayerState(_last(xx, s.att_x, lengths), p, _last(xf, s.ffn_x, lengths)))
        return x, after

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., vocab)."""
        return cast("Tensor", self.head(self.ln_out(x)))


def _shift(x: Tensor, before: Tensor) -> Tensor:
    return torch.cat([before.unsqueeze(1), x[:, :-1]], 1)


def _last(x: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return x[:, -1]
    padded = torch.cat([before.unsqueeze(1), x], 1)
    return padded[torch.arange(x.shape[0]), lengths]


def _linear(width_in: int, width_out: int, scale: float) -> nn.Linear:
    layer = nn.Linear(width_in, width_out, bias=False)
    layer.weight.data.uniform_(-scale, scale) if scale else layer.weight.data.zero_()
    return layer


def _low_rank(width: int, inner: int) -> tuple[nn.Parameter, nn.Parameter]:
    out = torch.empty(inner, width)
    nn.init.orthogonal_(out, gain=0.1 * max(1.0, math.sqrt(inner / width)))
    return nn.Parameter(torch.zeros(width, inner)), nn.Parameter(out)
