"""Turns the names and shapes of a GGUF's RWKV-6 or 7 (llama.cpp) into BlinkDL's.

Taken from ``conversion/rwkv.py`` and ``src/models/rwkv6.cpp`` and ``rwkv7.cpp`` of ggml-org's
llama.cpp. Three things are undone: llama.cpp divides two matrices of RWKV-6 by two for every few
layers, fills the first layer's value mix, which is never used, with copies of something else, and
keeps in fp32 what the checkpoint had in 16 bits. The last is taken back where it loses nothing, so
that a GGUF in F16 is bit for bit the checkpoint that it was made from, with the same fingerprint.
(But for an RWKV-6 that was divided: its numbers below 6e-5 have lost their last bits.)

D width, H heads of size N, R rank of a LoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.names import Tensors, renamed
from langchain_rwkv_state.runtime.checkpoint.where import shard_hint

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_PARTS = ("weight", "bias")
_TOP = {
    "token_embd.weight": "emb.weight",
    "output.weight": "head.weight",
    **{f"token_embd_norm.{part}": f"blocks.0.ln0.{part}" for part in _PARTS},
    **{f"output_norm.{part}": f"ln_out.{part}" for part in _PARTS},
}
_NORMS = {"attn_norm": "ln1", "attn_norm_2": "ln2", "time_mix_ln": "att.ln_x"}
_MATRICES = {
    **{f"time_mix_{n}": f"att.{n}" for n in ("key", "value", "receptance", "gate", "output")},
    **{f"channel_mix_{n}": f"ffn.{n}" for n in ("key", "value", "receptance")},
}
_SAME = {
    f"{theirs}.{part}": f"{ours}.{part}"
    for names, parts in ((_NORMS, _PARTS), (_MATRICES, ("weight",)))
    for theirs, ours in names.items()
    for part in parts
}
_HALVED = ("att.output.weight", "ffn.value.weight")
_UNUSED = ("time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight")
_NORM_EPS = 1e-5  # with which every runtime here computes

_Make = Callable[[torch.Tensor, int], torch.Tensor]


def _vector(tensor: torch.Tensor, _: int) -> torch.Tensor:
    return tensor.reshape(1, 1, -1)


def _by_heads(tensor: torch.Tensor, size: int) -> torch.Tensor:
    return tensor.reshape(-1, size)


def _turned(tensor: torch.Tensor, _: int) -> torch.Tensor:
    return tensor.transpose(-1, -2).contiguous()


_RESHAPED: dict[str, dict[str, tuple[str, _Make]]] = {
    "rwkv6": {
        "time_mix_lerp_x": ("att.time_maa_x", _vector),
        **{f"time_mix_lerp_{c}": (f"att.time_maa_{c}", _vector) for c in "wkvrg"},
        "time_mix_w1": ("att.time_maa_w1", _turned),
        "time_mix_w2": ("att.time_maa_w2", _turned),
        "time_mix_first": ("att.time_faaaa", _by_heads),
        "time_mix_decay": ("att.time_decay", _vector),
        "time_mix_decay_w1": ("att.time_decay_w1", _turned),
        "time_mix_decay_w2": ("att.time_decay_w2", _turned),
        "channel_mix_lerp_k": ("ffn.time_maa_k", _vector),
        "channel_mix_lerp_r": ("ffn.time_maa_r", _vector),
    },
    "rwkv7": {
        **{f"time_mix_{c}0": (f"att.{c}0", _vector) for c in "wav"},
        **{f"time_mix_{c}{n}": (f"att.{c}{n}", _turned) for c in "wavg" for n in "12"},
        "time_mix_k_k": ("att.k_k", _vector),
        "time_mix_k_a": ("att.k_a", _vector),
        "time_mix_r_k": ("att.r_k", _by_heads),
        "channel_mix_lerp_k": ("ffn.x_k", _vector),
    },
}
_FUSED = {
    "rwkv6": [f"att.time_maa_{letter}" for letter in "wkvrg"],
    "rwkv7": [f"att.x_{letter}" for letter in "rwkvag"],
}


def from_gguf(tensors: Tensors, metadata: Mapping[str, Any], path: Path) -> Tensors:
    """Returns the tensors under BlinkDL's names.

    Args:
        tensors: By llama.cpp's names; emptied, so that no second copy stays.
        metadata: What the file says of the model.
        path: The file, for messages.

    Raises:
        ModelLoadError: It is another architecture, or a variant that would be computed wrongly.
    """
    kind, size, every = _described(metadata, path)

    def part(layer: int, name: str, tensor: torch.Tensor) -> Tensors | None:
        found = _part(kind, name, tensor, size)
        if kind == "rwkv7" and layer == 0 and name in _UNUSED:
            return {}
        if found and every:
            return {n: t * 2 ** (layer // every) if n in _HALVED else t for n, t in found.items()}
        return found

    whose = f"llama.cpp's {kind} with heads of {size}"
    return _narrowed(renamed(tensors, _TOP, _BLOCK, part, path=path, whose=whose))


def _described(metadata: Mapping[str, Any], path: Path) -> tuple[str, int, int]:
    """Returns architecture, size of a head, and after how many layers numbers are halved."""
    kind = metadata.get("general.architecture")
    if kind is None:
        raise ModelLoadError(
            f"{path} is a GGUF file that does not say its architecture.{shard_hint(path)}"
        )
    if kind not in _RESHAPED:
        raise ModelLoadError(
            f"{path} is a GGUF file of the architecture {kind!r}, no RWKV: those of rwkv6 and "
            "rwkv7 are read."
        )
    eps = metadata.get(f"{kind}.attention.layer_norm_epsilon", _NORM_EPS)
    every = metadata.get(f"{kind}.rescale_every_n_layers", 0)
    size = metadata.get(f"{kind}.wkv.head_size")
    if not isinstance(size, int) or size < 1:
        raise ModelLoadError(
            f"{path} does not say the size of its heads ({kind}.wkv.head_size).{shard_hint(path)}"
        )
    if not isinstance(every, int) or every < 0:
        raise ModelLoadError(f"{path} says that it is rescaled every {every!r} layers.")
    if not isinstance(eps, float) or not math.isclose(eps, _NORM_EPS, rel_tol=1e-3):
        raise ModelLoadError(
            f"{path} is a variant of RWKV that would be computed wrongly: its layer norms have the "
            f"epsilon {eps}, where only {_NORM_EPS} is computed."
        )
    return kind, size, every


def _part(kind: str, name: str, tensor: torch.Tensor, size: int) -> Tensors | None:
    """Returns what one of a layer's tensors becomes; ``None`` for one that is not known."""
    if name in _SAME:
        return {_SAME[name]: tensor}
    plain = name.removesuffix(".weight")
    if plain == "time_mix_lerp_fused":
        rows = tensor.reshape(len(_FUSED[kind]), 1, 1, -1)
        return dict(zip(_FUSED[kind], rows.unbind(), strict=True))
    if plain not in _RESHAPED[kind]:
        return None
    ours, make = _RESHAPED[kind][plain]
    return {ours: make(tensor, size)}


def _narrowed(tensors: Tensors) -> Tensors:
    """Returns fp32 tensors in the dtype of the embedding where that changes no number."""
    like = tensors.get("emb.weight")
    if like is None or like.dtype not in (torch.float16, torch.bfloat16):
        return tensors
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32:
            narrow = tensor.to(like.dtype)
            if torch.equal(narrow.float(), tensor):
                tensors[name] = narrow
    return tensors
