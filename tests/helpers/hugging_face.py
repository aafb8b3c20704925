"""Writes checkpoints as others keep them: a Hugging Face folder of an RWKV-7, in fla's names.

fla itself is not needed. The mapping is written down anew, in the other direction from the
package's, after fla's own `convert_from_rwkv7.py`. The first layer's ``v0`` to ``v2`` are not
written: fla has none, since nothing uses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

Tensors = Mapping[str, torch.Tensor]

_PARTS = {
    "receptance.weight": "r_proj.weight",
    "key.weight": "k_proj.weight",
    "value.weight": "v_proj.weight",
    "output.weight": "o_proj.weight",
    "ln_x.weight": "g_norm.weight",
    "ln_x.bias": "g_norm.bias",
}
_BLOCKS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
_TOP = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}


def fla_tensors(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Returns an RWKV-7 in fla's names and shapes.

    Args:
        tensors: By BlinkDL's names.
    """
    found = {}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        if first != "blocks":
            found[f"{_TOP[first]}.{rest[0]}"] = tensor
            continue
        layer, kind, part = rest[0], rest[1], ".".join(rest[2:])
        start = f"model.layers.{layer}."
        if kind in _BLOCKS:
            found[f"{start}{_BLOCKS[kind]}.{part}"] = tensor
        elif kind == "ffn":
            found[f"{start}ffn.{part}"] = tensor.flatten() if part == "x_k" else tensor
        elif part in _PARTS:
            found[f"{start}attn.{_PARTS[part]}"] = tensor
        elif len(part) == 2 and part[0] in "wavg" and part[1] in "012":
            if (layer, part[0]) != ("0", "v"):
                place = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[part[1]]
                value = tensor.flatten() if part[1] == "0" else tensor.t().contiguous()
                found[f"{start}attn.{part[0]}_lora.lora.{place}"] = value
        else:
            found[f"{start}attn.{part}"] = tensor.flatten() if part in ("k_k", "k_a") else tensor
    return found


def write_hugging_face(folder: Path, tensors: Tensors, *, shards: int = 1, **config: Any) -> Path:
    """Writes a folder as `save_pretrained` does.

    Args:
        folder: The folder, which is made.
        tensors: An RWKV-7, by BlinkDL's names.
        shards: Over how many files it is spread; more than one have an index.
        config: Put into ``config.json``, over what is usual.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heads = tensors["blocks.0.att.r_k"]
    usual = {"model_type": "rwkv7", "head_dim": heads.shape[1], "norm_eps": 1e-5, "attn": None}
    usual |= {"hidden_act": "sqrelu", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(usual | config))
    return write_shards(folder, fla_tensors(tensors), shards)


def write_shards(folder: Path, tensors: Tensors, shards: int) -> Path:
    """Writes ``model.safetensors``, or so many shards and their index.

    Args:
        folder: An existing folder.
        tensors: By any names.
        shards: Their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        safetensors.torch.save_file(dict(tensors), folder / "model.safetensors")
        return folder
    names = list(tensors)
    size = -(-len(names) // shards)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * size : (number + 1) * size]
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
