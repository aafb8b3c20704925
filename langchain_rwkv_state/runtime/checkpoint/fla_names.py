"""Turns the names and shapes of Hugging Face's RWKV-7 (fla) into BlinkDL's.

Taken from ``utils/convert_from_rwkv7.py`` and ``fla/models/rwkv7`` of fla-org's
flash-linear-attention. Tensors are renamed and their small ones reshaped; the numbers stay. The
matrices of a LoRA are turned: fla keeps them as linear layers do, ``[out, in]``, BlinkDL the other
way. What would be computed otherwise than it was trained (attention layers between, another
epsilon) is refused by the settings in ``config.json``.

D width, R rank of a LoRA.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.names import Tensors, renamed

_OWN = re.compile(r"model\.layers\.\d+\.attn\.(r_proj\.weight|w_lora\.lora\.0\.weight)")
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LORA = re.compile(r"attn\.([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)")
_TOP = {
    "model.embeddings.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_NORMS = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "attn.g_norm": "att.ln_x"}
_PLAIN = {
    **{
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in _NORMS.items()
        for part in ("weight", "bias")
    },
    "attn.r_proj.weight": "att.receptance.weight",
    "attn.k_proj.weight": "att.key.weight",
    "attn.v_proj.weight": "att.value.weight",
    "attn.o_proj.weight": "att.output.weight",
    "attn.r_k": "att.r_k",
    "ffn.key.weight": "ffn.key.weight",
    "ffn.value.weight": "ffn.value.weight",
}
_VECTORS = {"attn.k_k": "att.k_k", "attn.k_a": "att.k_a", "ffn.x_k": "ffn.x_k"}
_MIXES = {f"attn.x_{letter}": f"att.x_{letter}" for letter in "rwkvag"}
_NORM_EPS, _HEAD_NORM_EPS = 1e-5, 64e-5  # with which every runtime here computes


def is_fla(names: Iterable[str]) -> bool:
    """Says whether names are those of fla's RWKV-7."""
    return any(map(_OWN.fullmatch, names))


def read_config(path: Path) -> dict[str, Any]:
    """Returns a model's settings; none where there is no such file.

    Raises:
        ModelLoadError: It is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): download it again.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path} is no JSON object: download it again.")
    return found


def from_fla(tensors: Tensors, config: Mapping[str, Any], path: Path) -> Tensors:
    """Returns the tensors under BlinkDL's names.

    Args:
        tensors: By fla's names; emptied, so that no second copy stays.
        config: The settings, as `read_config` gives them.
        path: Where they come from, for messages.

    Raises:
        ModelLoadError: It is a variant that would be computed wrongly.
    """
    _require_plain(config, path)
    found = renamed(tensors, _TOP, _BLOCK, _part, path=path, whose="fla's RWKV-7")
    if config.get("tie_word_embeddings") and "emb.weight" in found:
        found.setdefault("head.weight", found["emb.weight"])
    return found


def _part(_: int, name: str, tensor: torch.Tensor) -> Tensors | None:
    """Returns what one of a layer's tensors becomes; ``None`` for one that is not known."""
    if name in _PLAIN:
        return {_PLAIN[name]: tensor}
    if name in _VECTORS or name in _MIXES:
        return {(_VECTORS | _MIXES)[name]: tensor.reshape(1, 1, -1)}
    if name == "attn.x_x":  # in fla's first version, one tensor for six
        return {
            f"att.x_{c}": each.reshape(1, 1, -1) for c, each in zip("rwkvag", tensor, strict=True)
        }
    lora = _LORA.fullmatch(name)
    if lora is None:
        return None
    letter, place = lora[1], lora[2]
    if place == "2.bias":
        return {f"att.{letter}0": tensor.reshape(1, 1, -1)}
    return {f"att.{letter}{1 if place == '0.weight' else 2}": tensor.t().contiguous()}


def _require_plain(config: Mapping[str, Any], path: Path) -> None:
    """Refuses settings with which the model is another one than its tensors say."""
    if not config:
        return
    try:
        eps, size = float(config.get("norm_eps", _NORM_EPS)), int(config.get("head_dim") or 64)
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}: its config.json holds no numbers ({error}).") from error
    wrong = (
        f"model_type is {config['model_type']!r}"
        if config.get("model_type", "rwkv7") != "rwkv7"
        else "it has layers of attention (attn)"
        if config.get("attn")
        else f"hidden_act is {config['hidden_act']!r}"
        if config.get("hidden_act", "sqrelu") != "sqrelu"
        else f"norm_eps is {eps} with heads of {size}, where only {_NORM_EPS} and 64 are computed"
        if not math.isclose(eps, _NORM_EPS) or not math.isclose(eps * size, _HEAD_NORM_EPS)
        else ""
    )
    if wrong:
        raise ModelLoadError(
            f"{path} is a variant of RWKV-7 that would be computed wrongly: {wrong} in its "
            "config.json. Use a model without it."
        )
