"""The names, shapes and dtypes of the tensors that make up one RWKV state.

A layout is pure description: it holds no numbers and knows no model file. The easy mistake is to
leave out ``att_pp`` for RWKV-4: the true numerator is ``att_aa * exp(att_pp)``, so four tensors a
layer cannot restore a conversation.

Glossary: L layers, D embedding width, H heads, N head size, A = H * N the width of the time-mix
(equal to D in every published model).
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state.errors import StateCorrupt

Version = Literal[4, 5, 6, 7]

_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the short name (``fp32``, ``fp16``, ``bf16``) of a state dtype.

    Raises:
        ValueError: The dtype is not one that states are kept in.
    """
    try:
        return _DTYPE_NAMES[dtype]
    except KeyError:
        raise ValueError(
            f"States are kept in fp32, fp16 or bf16, not in {dtype}: convert the tensor first."
        ) from None


class TensorSpec(NamedTuple):
    """One tensor of a state: its full name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, repr=False)
class StateLayout:
    """The tensors of a state of one model, by name and shape.

    Attributes:
        version: RWKV version, 4 to 7.
        n_layer: Number of layers, L.
        n_embd: Embedding width, D.
        n_head: Number of heads, H (1 for version 4, which has none).
        head_size: Head size, N (A for version 4).
        shift_dtypes: One dtype name a layer for the token-shift tensors ``att_x_prev`` and
            ``ffn_x_prev``; the accumulators and WKV states are always fp32.

    Example:
        >>> layout = StateLayout.of(7, n_layer=2, n_embd=128, head_size=64)
        >>> layout["blocks.1.att_kv"].shape
        (2, 64, 64)
        >>> layout.nbytes
        67584
    """

    version: Version
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    shift_dtypes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks that the numbers fit each other."""
        if self.version not in (4, 5, 6, 7):
            raise ValueError(f"RWKV version {self.version!r} is not one of 4, 5, 6, 7.")
        if min(self.n_layer, self.n_embd, self.n_head, self.head_size) < 1:
            raise ValueError(f"A layout's sizes must be positive, got {self}.")
        unknown = sorted(set(self.shift_dtypes) - set(_DTYPES))
        if len(self.shift_dtypes) != self.n_layer or unknown:
            raise ValueError(
                f"shift_dtypes must give one of {sorted(_DTYPES)} for each of {self.n_layer} "
                f"layers, got {self.shift_dtypes}."
            )

    @classmethod
    def of(
        cls,
        version: Version,
        *,
        n_layer: int,
        n_embd: int,
        head_size: int | None = None,
        shift_dtype: str = "fp32",
    ) -> StateLayout:
        """Makes a layout whose layers all share one dtype.

        Args:
            version: RWKV version, 4 to 7.
            n_layer: Number of layers.
            n_embd: Embedding width.
            head_size: Head size; ``None`` for version 4.
            shift_dtype: ``fp32``, ``fp16`` or ``bf16``.
        """
        size = head_size or n_embd
        return cls(version, n_layer, n_embd, n_embd // size, size, (shift_dtype,) * n_layer)

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors in the order in which the `rwkv` package lists them."""
        specs: list[TensorSpec] = []
        flat, fp32 = (self.n_embd,), torch.float32
        for layer, short in enumerate(self.shift_dtypes):
            shift, block = _DTYPES[short], f"blocks.{layer}."
            specs.append(TensorSpec(block + "att_x_prev", flat, shift))
            if self.version == 4:
                names = ("att_aa", "att_bb", "att_pp")
                specs.extend(TensorSpec(block + name, (self.head_size,), fp32) for name in names)
            else:
                matrix = (self.n_head, self.head_size, self.head_size)
                specs.append(TensorSpec(block + "att_kv", matrix, fp32))
            specs.append(TensorSpec(block + "ffn_x_prev", flat, shift))
        return tuple(specs)

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.specs}

    def __repr__(self) -> str:
        known = ("version", "n_layer", "n_embd", "n_head", "head_size")
        shown = ", ".join(f"{name}={getattr(self, name)}" for name in known)
        runs = ((name, len(list(run))) for name, run in itertools.groupby(self.shift_dtypes))
        shifts = ", ".join(f"{count} x {name!r}" for name, count in runs)
        return f"StateLayout({shown}, shift_dtypes=({shifts}))"

    def _repr_html_(self) -> str:
        rows = (
            (spec.name, " x ".join(map(str, spec.shape)), dtype_name(spec.dtype), spec.nbytes)
            for spec in self.specs
        )
        return markup.table(
            repr(self), ("tensor", "shape", "dtype", "bytes"), rows, len(self.specs)
        )

    def __getitem__(self, name: str) -> TensorSpec:
        """Returns the spec of one tensor.

        Raises:
            KeyError: The layout has no tensor of that name.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(
                f"No tensor {name!r} in an RWKV-{self.version} state of {self.n_layer} layers; "
                f"the first is {self.specs[0].name!r}."
            ) from None

    @property
    def nbytes(self) -> int:
        """Nominal size in bytes of one state."""
        return sum(spec.nbytes for spec in self.specs)

    def to_json(self) -> str:
        """Returns a canonical JSON text of the layout."""
        return json.dumps(
            {
                "version": self.version,
                "n_layer": self.n_layer,
                "n_embd": self.n_embd,
                "n_head": self.n_head,
                "head_size": self.head_size,
                "shift_dtypes": list(self.shift_dtypes),
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> StateLayout:
        """Reads what `to_json` wrote.

        Raises:
            StateCorrupt: The text is not a layout.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            numbers = [raw[k] for k in ("n_layer", "n_embd", "n_head", "head_size")]
            if not all(type(n) is int and 0 < n <= 1 << 20 for n in (*numbers, raw["version"])):
                raise ValueError(f"sizes {numbers} are out of range")
            n_layer, n_embd, n_head, head_size = numbers
            shift = tuple(str(name) for name in raw["shift_dtypes"])
            return cls(raw["version"], n_layer, n_embd, n_head, head_size, shift)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StateCorrupt(
                f"The layout in the header is not readable: {error!s:.200}."
            ) from error
