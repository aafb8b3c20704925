"""Makes random RWKV checkpoints and a tiny tokenizer, for what needs no training.

The tensors carry BlinkDL's names and shapes, so that the plain `rwkv` package loads them; their
values are chosen so that logits spread and states neither vanish nor explode, and mean nothing.
Version ``5`` is 5.0 (one decay a head), as in the package; what most people run is 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VERSIONS = (4, 5.0, 5.1, 5.2, 6, 7)
"""Every version that the `rwkv` package runs."""

DEFAULT_VOCAB = 288
"""Enough for `tiny_tokenizer`: 256 bytes, an end of text and a few merges."""

END_OF_TEXT = "<|endoftext|>"
"""The tiny tokenizer's token of id 0."""

_MERGES = [
    *[("Ċ", "Ċ"), ("Ġ", "t"), ("h", "e"), ("i", "n"), ("e", "r"), ("a", "n"), ("o", "n")],
    *[("Ġ", "a"), ("U", "s"), ("Us", "er"), ("A", "s"), ("Ġt", "he"), ("o", "u"), ("l", "l")],
    *[("Ġ", "s"), ("r", "e"), ("Ġ", "m"), ("s", "t"), ("in", "g"), ("Ġ", "w"), (":", "Ġ")],
]


def random_checkpoint(
    version: float,
    *,
    n_layer: int = 2,
    n_embd: int = 128,
    head_size: int = 64,
    vocab: int = DEFAULT_VOCAB,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tuned_state: bool = False,
) -> dict[str, torch.Tensor]:
    """Returns the tensors of a random model.

    Args:
        version: 4, 5.0, 5.1, 5.2, 6 or 7.
        n_layer: Number of layers.
        n_embd: Embedding width; a multiple of 32.
        head_size: Size of a head, a divisor of `n_embd`; RWKV-4 has no heads.
        vocab: Size of the vocabulary.
        seed: Seed of the values.
        dtype: Dtype of all tensors.
        tuned_state: With the start states (``time_state``) that some 5.2 and 6 checkpoints bring.

    Returns:
        Tensors by name, in the order of BlinkDL's checkpoints.

    Example:
        >>> random_checkpoint(7, n_embd=64, head_size=32)["blocks.0.att.r_k"].shape
        torch.Size([2, 32])
    """
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {VERSIONS}, got {version!r}")
    if n_embd % head_size:
        raise ValueError(f"head_size {head_size} does not divide n_embd {n_embd}")
    make = _Maker(n_embd, n_embd // head_size, head_size, seed)
    time_mix, channel_mix = _LAYERS[version]
    tensors = {"emb.weight": make.normal(vocab, n_embd, scale=0.5)}
    for layer in range(n_layer):
        block = f"blocks.{layer}."
        for norm in ("ln0", "ln1", "ln2") if layer == 0 else ("ln1", "ln2"):
            tensors |= make.norm(block + norm)
        att, ffn = time_mix(make), channel_mix(make)
        tensors |= {f"{block}att.{name}": tensor for name, tensor in att.items()}
        tensors |= {f"{block}ffn.{name}": tensor for name, tensor in ffn.items()}
        if version != 4:
            tensors |= make.norm(f"{block}att.ln_x")
        if tuned_state:
            shape = (n_embd // head_size, head_size, head_size)
            tensors[f"{block}att.time_state"] = make.normal(*shape, scale=0.3)
    tensors |= make.norm("ln_out")
    tensors["head.weight"] = make.matrix(vocab, n_embd)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_checkpoint(
    path: Path | str,
    version: float | None = None,
    *,
    tensors: dict[str, torch.Tensor] | None = None,
    **options: Any,
) -> Path:
    """Writes a checkpoint as ``.pth`` or ``.safetensors``, as the path's ending says.

    Args:
        path: The file.
        version: Version of a `random_checkpoint`; needless where `tensors` are given.
        tensors: The tensors to write instead.
        options: Passed on to `random_checkpoint`.

    Returns:
        The path.
    """
    target = Path(path)
    if tensors is None:
        if version is None:
            raise ValueError("give a version or the tensors")
        tensors = random_checkpoint(version, **options)
    if target.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, target)
    else:
        torch.save(tensors, target)
    return target


def tiny_tokenizer(vocab: int = DEFAULT_VOCAB) -> Tokenizer:
    """Returns a byte-level tokenizer whose ids all lie below `vocab`.

    Id 0 is ``<|endoftext|>``, 1 to 256 are the bytes, and then come as many merges as fit; the
    first is a blank line (``"\\n\\n"``). Merges reach across words, so every text that holds a
    blank line has its token.

    Args:
        vocab: Size of the vocabulary, at least 258.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first_merge = 1 + len(alphabet)
    if vocab <= first_merge:
        raise ValueError(f"vocab must be more than {first_merge}, got {vocab}")
    merges = _MERGES[: vocab - first_merge]
    names = [END_OF_TEXT, *alphabet, *(left + right for left, right in merges)]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def write_tokenizer(path: Path | str, vocab: int = DEFAULT_VOCAB) -> Path:
    """Writes `tiny_tokenizer` as a ``tokenizer.json`` and returns its path."""
    tiny_tokenizer(vocab).save(str(path))
    return Path(path)


class _Maker:
    """Draws the tensors of one model. D width, H heads, N head size."""

    def __init__(self, width: int, heads: int, size: int, seed: int) -> None:
        self.d, self.h, self.n = width, heads, size
        self._random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=self._random) * scale + mean

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(shape, generator=self._random) * (high - low) + low

    def matrix(self, out: int, into: int) -> torch.Tensor:
        return self.normal(out, into, scale=into**-0.5)

    def lora(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        down, up = self.normal(self.d, rank), self.normal(rank, self.d)
        return down * self.d**-0.5, up * 0.3 * rank**-0.5

    def norm(self, name: str) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": self.uniform(self.d, low=0.8, high=1.2),
            f"{name}.bias": self.normal(self.d, scale=0.05),
        }

    def mixes(self, prefix: str, letters: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}_{letter}": self.uniform(1, 1, self.d) for letter in letters}

    def square(self, *names: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self.matrix(self.d, self.d) for name in names}


def _time_mix_4(make: _Maker) -> dict[str, torch.Tensor]:
    return {
        "time_decay": make.uniform(make.d, low=-4.0, high=1.0),
        "time_first": make.normal(make.d, scale=0.5),
        **make.mixes("time_mix", "kvr"),
        **make.square("key", "value", "receptance", "output"),
    }


def _time_mix_5_0(make: _Maker) -> dict[str, torch.Tensor]:
    return {
        "time_decay": make.uniform(make.h, low=-4.0, high=0.0),
        "time_first": make.normal(make.h, scale=0.5),
        **make.mixes("time_mix", "kvr"),
        **make.square("key", "value", "receptance", "output"),
    }


def _time_mix_5_1(make: _Maker) -> dict[str, torch.Tensor]:
    return {
        "time_decay": make.uniform(make.h, low=-4.0, high=0.0),
        "time_faaaa": make.normal(make.h, scale=0.5),
        **make.mixes("time_mix", "kvrg"),
        **make.square("key", "value", "receptance", "gate", "output"),
    }


def _time_mix_5_2(make: _Maker) -> dict[str, torch.Tensor]:
    return {
        "time_decay": make.uniform(make.h, make.n, low=-4.0, high=0.0),
        "time_faaaa": make.normal(make.h, make.n, scale=0.5),
        **make.mixes("time_mix", "kvrg"),
        **make.square("key", "value", "receptance", "gate", "output"),
    }


def _time_mix_6(make: _Maker) -> dict[str, torch.Tensor]:
    rank = 16
    decay_down, decay_up = make.lora(rank)
    return {
        **make.mixes("time_maa", "xwkvrg"),
        "time_maa_w1": make.normal(make.d, 5 * rank, scale=make.d**-0.5),
        "time_maa_w2": make.normal(5, rank, make.d, scale=0.3 * rank**-0.5),
        "time_decay": make.uniform(1, 1, make.d, low=-4.0, high=0.0),
        "time_decay_w1": decay_down,
        "time_decay_w2": decay_up,
        "time_faaaa": make.normal(make.h, make.n, scale=0.5),
        **make.square("key", "value", "receptance", "gate", "output"),
    }


def _time_mix_7(make: _Maker) -> dict[str, torch.Tensor]:
    tensors = make.mixes("x", "rwkvag")
    for letter, rank in (("w", 64), ("a", 64), ("v", 32), ("g", 128)):
        rank = min(rank, make.d // 2)
        if letter != "g":
            tensors[f"{letter}0"] = make.normal(1, 1, make.d, scale=0.5)
        tensors[f"{letter}1"], tensors[f"{letter}2"] = make.lora(rank)
    return {
        **tensors,
        "k_k": make.normal(1, 1, make.d, scale=0.1, mean=0.85),
        "k_a": make.normal(1, 1, make.d, scale=0.1, mean=1.0),
        "r_k": make.normal(make.h, make.n, scale=0.1),
        **make.square("receptance", "key", "value", "output"),
    }


def _channel_mix_4(make: _Maker) -> dict[str, torch.Tensor]:
    return {
        **make.mixes("time_mix", "kr"),
        "key.weight": make.matrix(4 * make.d, make.d),
        **make.square("receptance"),
        "value.weight": make.matrix(make.d, 4 * make.d),
    }


def _channel_mix_5(make: _Maker, prefix: str = "time_mix") -> dict[str, torch.Tensor]:
    width = int(3.5 * make.d) // 32 * 32
    return {
        **make.mixes(prefix, "kr"),
        "key.weight": make.matrix(width, make.d),
        **make.square("receptance"),
        "value.weight": make.matrix(make.d, width),
    }


def _channel_mix_6(make: _Maker) -> dict[str, torch.Tensor]:
    return _channel_mix_5(make, "time_maa")


def _channel_mix_7(make: _Maker) -> dict[str, torch.Tensor]:
    return {
        **make.mixes("x", "k"),
        "key.weight": make.matrix(4 * make.d, make.d),
        "value.weight": make.matrix(make.d, 4 * make.d),
    }


_Part = Callable[[_Maker], dict[str, torch.Tensor]]
_LAYERS: dict[float, tuple[_Part, _Part]] = {
    4: (_time_mix_4, _channel_mix_4),
    5.0: (_time_mix_5_0, _channel_mix_5),
    5.1: (_time_mix_5_1, _channel_mix_5),
    5.2: (_time_mix_5_2, _channel_mix_5),
    6: (_time_mix_6, _channel_mix_6),
    7: (_time_mix_7, _channel_mix_7),
}
