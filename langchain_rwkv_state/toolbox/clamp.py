"""Loads an RWKV-4 or 5 whose channels forget neither faster nor slower than two bounds.

`clamp_decay` changes a model, by name, and no state. RWKV-6 and 7 have no such numbers to clamp.
``time_decay`` is the logarithm of a rate, ``w = -exp(time_decay)``, so the low bound limits the
*longest* memory and the high one the shortest. Clamped to the same numbers, ``w`` itself, as the
`rwkv` package keeps it once loaded, would lose every half-life above 6.9 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from langchain_rwkv_state._files import require_new, write_whole
from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors
from langchain_rwkv_state.runtime.loader import load_changed, locate

LOW, HIGH = -8.0, -0.1
"""Half-lives from 2,066 tokens down to 0.77."""


@dataclass(frozen=True)
class DecayClamp:
    """A change of ``time_decay``: what is below `low` becomes `low`, what is above `high`, `high`.

    Attributes:
        low: The least, of the longest memory.
        high: The most, of the shortest.

    Raises:
        ValueError: They are not two numbers in order.

    Example:
        >>> DecayClamp(-8, -0.1).name
        'clamp(-8,-0.1)'
    """

    low: float = LOW
    high: float = HIGH

    def __post_init__(self) -> None:
        """Checks the bounds."""
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        if not finite or self.low > self.high:
            raise ValueError(
                f"time_decay cannot be clamped to {self.low} to {self.high}: give two numbers, the "
                "lower one first, such as low=-8 and high=-0.1."
            )

    @property
    def name(self) -> str:
        """What a fingerprint calls it."""
        return f"clamp({self.low:g},{self.high:g})"

    def of(
        self, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint
    ) -> dict[str, torch.Tensor]:
        """Returns the ``time_decay`` of those layers in which a number changes.

        Args:
            tensors: A checkpoint's; left as they are.
            checkpoint: What they are.

        Raises:
            ValueError: It is an RWKV-6 or 7.
        """
        _require_static(checkpoint)
        found = {}
        for number in range(checkpoint.n_layer):
            name = f"blocks.{number}.att.time_decay"
            clamped = tensors[name].clamp(self.low, self.high)
            if not torch.equal(clamped, tensors[name]):
                found[name] = clamped
        return found


def clamp_decay(
    model: str | Path, low: float = LOW, high: float = HIGH, *, strategy: str = "auto"
) -> Runtime:
    """Loads an RWKV-4 or 5 with its ``time_decay`` clamped.

    The weights are those of this clamp alone: whoever has the plain model loaded keeps it as it
    is. The fingerprint names the clamp wherever a number changed, so that states do not pass
    between the two; where none did, it is the plain model's.

    Args:
        model: As `load_runtime` takes it.
        low: The least ``time_decay``: no half-life is above ``ln 2 / exp(low)`` tokens.
        high: The most: none is below ``ln 2 / exp(high)``.
        strategy: As `load_runtime` takes it.

    Returns:
        A runtime; its `close` gives the weights back.

    Raises:
        ModelLoadError: The model cannot be found or read, or the strategy cannot be had.
        ValueError: The bounds are not two numbers in order, or the model is an RWKV-6 or 7.

    Example:
        >>> with_clamp = clamp_decay("rwkv-4.pth", -8, -0.1)  # doctest: +SKIP
        >>> with_clamp.fingerprint  # doctest: +SKIP
        'rwkv4-30a1...+clamp(-8,-0.1)/fp32/-/-'
    """
    return load_changed(model, DecayClamp(low, high), strategy)


def write_clamped(
    model: str | Path, path: str | Path, low: float = LOW, high: float = HIGH
) -> Path:
    """Writes an RWKV-4 or 5 with its ``time_decay`` clamped to a checkpoint of its own.

    Everything that takes a model takes the file: ``ChatRWKV(model=path)``. A ``tokenizer.json``
    beside the old file is not copied.

    Args:
        model: As `load_runtime` takes it.
        path: A new ``.safetensors`` file; written whole or not at all.
        low: As for `clamp_decay`.
        high: As for `clamp_decay`.

    Returns:
        The path.

    Raises:
        FileExistsError: There is something at `path` already; it is left as it is.
        ModelLoadError: The model cannot be found or read.
        ValueError: As for `clamp_decay`, or `path` does not end with ``.safetensors``.
    """
    target, clamp, source = Path(path), DecayClamp(low, high), locate(model)
    if target.suffix != ".safetensors":
        raise ValueError(f"A clamped model is written to a .safetensors file, not to {target}.")
    require_new(target)
    tensors = read_tensors(source)
    changed = clamp.of(tensors, Checkpoint.of(tensors, source))
    write_whole(target, safetensors.torch.save(_apart({**tensors, **changed})), new=True)
    return target


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns contiguous tensors, no two in one storage, as safetensors wants them."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.contiguous()
        place = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return found


def _require_static(checkpoint: Checkpoint) -> None:
    reasons = {
        "6": "time_decay is only where its decay starts from, and the text adds to it",
        "7": "its decay comes from the text, and never takes away more than 0.455 at a token",
    }
    reason = reasons.get(checkpoint.version)
    if reason is not None:
        raise ValueError(
            f"An RWKV-{checkpoint.version} has no decay that could be clamped: {reason}. See what "
            "it keeps with half_life, and leave the weights as they are."
        )
