"""Trains a small RWKV-4 in some minutes on a toy language: a model that remembers.

Plain PyTorch, float32, seeded; its weights carry BlinkDL's names, so the `rwkv` package loads them.
It is for the figures on what recipes do to a memory; it is no model for texts. The recurrence is
kept as the package keeps it, with the largest exponent taken out at every token, and not as a
running product of decays.

    python -m benchmarks.rwkv4_training

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from random import Random
from typing import cast

import safetensors.torch
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rwkv4_words import WORDS, lesson

LAYERS, WIDTH = 2, 128
STEPS, BATCH, LENGTH = 1500, 16, 128
RATE = 4e-3
WARMUP = 50
ANSWER_WEIGHT = 4.0  # an answer is one word in ten; the rest can be learnt without a memory
SEED = 0
MODEL = Path(__file__).parent / "weights" / "rwkv4.safetensors"
"""The weights that the benchmarks measure: four minutes of training, kept in fp16."""


def wkv(k: Tensor, v: Tensor, decay: Tensor, first: Tensor) -> Tensor:
    """RWKV-4's recurrence: a mean of the values so far, with weights ``exp(k)`` that decay.

    Args:
        k: Keys, ``[B, T, D]``.
        v: Values, ``[B, T, D]``.
        decay: ``time_decay``, ``[D]``: the logarithm of a rate.
        first: ``time_first``, ``[D]``: what the current token's key is raised by.

    Returns:
        ``[B, T, D]``.
    """
    speed = decay.exp()
    aa = bb = torch.zeros_like(k[:, 0])
    pp = torch.full_like(aa, -1e30)
    out = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
        now = key + first
        top = torch.maximum(pp, now).detach()
        past, new = (pp - top).exp(), (now - top).exp()
        out.append((past * aa + new * value) / (past * bb + new))
        faded = pp - speed
        top = torch.maximum(faded, key).detach()
        past, new = (faded - top).exp(), (key - top).exp()
        aa, bb, pp = past * aa + new * value, past * bb + new, top
    return torch.stack(out, 1)


class TimeMix(nn.Module):
    """The time-mix of RWKV-4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        ramp = torch.arange(width) / (width - 1)
        # Rates from a memory of 2,000 tokens to one of half a token, as wide as can be of use.
        self.time_decay = nn.Parameter(-8 + 9 * ramp)
        self.time_first = nn.Parameter(torch.full((width,), math.log(0.3)))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (_share(width) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns what is added to the residual stream, ``[B, T, D]``."""
        back = _shifted(x)
        k = self.key(_mixed(x, back, self.time_mix_k))
        v = self.value(_mixed(x, back, self.time_mix_v))
        r = self.receptance(_mixed(x, back, self.time_mix_r)).sigmoid()
        mean = wkv(k, v, self.time_decay, self.time_first)
        return cast("Tensor", self.output(r * mean))


class ChannelMix(nn.Module):
    """The channel-mix of RWKV-4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_mix_k, self.time_mix_r = _share(width), _share(width)
        self.key = nn.Linear(width, 4 * width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what is added to the residual stream, ``[B, T, D]``."""
        back = _shifted(x)
        k = self.key(_mixed(x, back, self.time_mix_k)).relu().square()
        r = self.receptance(_mixed(x, back, self.time_mix_r)).sigmoid()
        return cast("Tensor", r * self.value(k))


class Block(nn.Module):
    """One layer."""

    def __init__(self, width: int, *, is_first: bool) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(width) if is_first else None
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.att, self.ffn = TimeMix(width), ChannelMix(width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the residual stream behind the layer, ``[B, T, D]``."""
        if self.ln0 is not None:
            x = self.ln0(x)
        x = x + self.att(self.ln1(x))
        return cast("Tensor", x + self.ffn(self.ln2(x)))


class RWKV4(nn.Module):
    """The whole model; its `state_dict` is a checkpoint."""

    def __init__(self, vocab: int, layers: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, is_first=not i) for i in range(layers))
        self.ln_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns logits ``[B, T, V]`` of ids ``[B, T]``."""
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return cast("Tensor", self.head(self.ln_out(x)))


def train(steps: int = STEPS, *, seed: int = SEED) -> RWKV4:
    """Returns a trained model.

    Args:
        steps: Batches.
        seed: Of weights and texts.
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    model = RWKV4(len(WORDS), LAYERS, WIDTH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(_rate, steps=steps))
    for _ in track(range(steps), "training"):
        texts, marks = zip(*(lesson(rng, LENGTH + 1) for _ in range(BATCH)), strict=True)
        ids, answers = torch.tensor(texts), torch.tensor(marks)[:, 1:].flatten()
        logits = model(ids[:, :-1]).flatten(0, 1)
        losses = cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        weights = 1 + (ANSWER_WEIGHT - 1) * answers
        optimiser.zero_grad()
        ((losses * weights).sum() / weights.sum()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model


def write(model: RWKV4, path: Path = MODEL) -> Path:
    """Writes the weights in fp16 and returns the path; what is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path)
    return path


def _rate(step: int, steps: int) -> float:
    """Returns the learning rate's share: up in a line, down in a half cosine."""
    return min(1.0, (step + 1) / WARMUP) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def _share(width: int) -> nn.Parameter:
    return nn.Parameter(torch.full((1, 1, width), 0.5))


def _shifted(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (0, 0, 1, -1))


def _mixed(x: Tensor, back: Tensor, share: Tensor) -> Tensor:
    return x * share + back * (1 - share)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(write(train()))
