"""Takes wrappers and prefixes of trainers off the names of tensors, and refuses what is no model.

It knows BlinkDL's names and what stands around them; other formats' names are the business of
`fla_names` and `gguf_names`. Where two tensors would get one name,
the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from langchain_rwkv_state.errors import ModelLoadError

Tensors = dict[str, torch.Tensor]
Part = Callable[[int, str, torch.Tensor], Tensors | None]

WRAPPERS = ("state_dict", "model")
"""Under which names trainers keep a model among other things."""

_PREFIX = re.compile(r"(module\.|_forward_module\.|_orig_mod\.)+")
_LORA = re.compile(r"(^|\.)(lora_[AB]|lora_magnitude_vector|bone|disha)(\.|$)")
_STATE = re.compile(r"(blocks\.\d+\.)?(att_(kv|x_prev|aa|bb|pp)|ffn_x_prev)(\..+)?")
_TUNED = re.compile(r"(blocks\.\d+\.att\.)?time_state")


def unwrapped(found: object) -> tuple[object, str]:
    """Returns what holds the tensors, and the name that it stands under, empty for none.

    Args:
        found: What `torch.save` wrote.
    """
    if isinstance(found, Mapping):
        for name in WRAPPERS:
            inner = found.get(name)
            if isinstance(inner, Mapping) and inner:
                return inner, name
    return found, ""


def without_prefixes(tensors: Tensors, path: Path) -> tuple[Tensors, str]:
    """Takes trainers' prefixes off, such as ``module.``.

    Args:
        tensors: By any names.
        path: Where they come from, for messages.

    Returns:
        The same tensors, and a prefix that was taken off, empty for none.

    Raises:
        ModelLoadError: Two of them have one name without it.
    """
    prefix, found = "", {}
    for name, tensor in tensors.items():
        match = _PREFIX.match(name)
        plain = name[match.end() :] if match else name
        prefix = match[0] if match else prefix
        if plain in found:
            raise ModelLoadError(
                f"{path} holds {plain!r} twice, with and without {prefix!r} before its name: keep "
                "one of the two models that it holds."
            )
        found[plain] = tensor
    return found, prefix


def renamed(
    tensors: Tensors,
    top: Mapping[str, str],
    block: re.Pattern[str],
    part: Part,
    *,
    path: Path,
    whose: str,
) -> Tensors:
    """Returns another format's tensors under BlinkDL's names.

    Args:
        tensors: By the format's names; emptied, so that no second copy stays.
        top: BlinkDL's names of what is in no layer, by the format's.
        block: Finds the number of a layer in a name, and the rest of the name.
        part: Returns what a layer's tensor becomes, by names without the layer; ``None`` for one
            that is not known.
        path: Where they come from, for messages.
        whose: Whose names they are, for messages.

    Raises:
        ModelLoadError: A tensor is not known, or has a shape that does not fit.
    """
    found: Tensors = {}
    while tensors:
        name, tensor = tensors.popitem()
        if name in top:
            found[top[name]] = tensor
            continue
        match = block.fullmatch(name)
        try:
            parts = part(int(match[1]), match[2], tensor) if match else None
        except (RuntimeError, ValueError) as error:  # of a shape that does not fit
            raise ModelLoadError(
                f"{path} is damaged or of an unknown kind: {name!r} has the shape "
                f"{list(tensor.shape)}, and not that of {whose}."
            ) from error
        if match is None or parts is None:
            raise ModelLoadError(
                f"{path} holds {name!r}, which {whose} has not: it is a variant that would be "
                "computed wrongly."
            )
        found |= {f"blocks.{match[1]}.{ours}": each for ours, each in parts.items()}
    return found


def require_model(names: Iterable[str], path: Path) -> None:
    """Refuses files that hold no model: an unmerged LoRA, a file of states.

    Raises:
        ModelLoadError: It is one of these; the message says what to do with it.
    """
    every = list(names)
    lora = next(filter(_LORA.search, every), None)
    if lora is not None:
        raise ModelLoadError(
            f"{path} holds a LoRA that was not merged ({lora!r}), which is a change of a model and "
            "none itself: merge it into the model that it was trained on (RWKV-PEFT has a script, "
            "PEFT has merge_and_unload) and pass the result."
        )
    if every and all(map(_STATE.fullmatch, every)):
        raise ModelLoadError(
            f"{path} is a state, no model (it holds {every[0]!r}): read it with RWKVState.load and "
            "pass the model that it belongs to."
        )
    if every and all(map(_TUNED.fullmatch, every)):
        raise ModelLoadError(
            f"{path} holds tuned start states, no model (it holds {every[0]!r}): read them with "
            "import_tensors and pass the model that they were tuned for."
        )
