"""Strategies: where each layer of a model runs and in which dtypes, as one short string.

This module reads the strings of the `rwkv` package and refuses those that the package would take
and then not do; it loads nothing. The easy mistake is to trust the package's own check: it accepts
``fp16i4`` and computes in fp16, and for RWKV-7 it silently drops everything behind the second word.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

import torch

from langchain_rwkv_state.errors import ModelLoadError

_STAGE = re.compile(
    r"(?P<device>cpu|cuda(?::\d+)?|mps|dml) (?P<dtype>fp32|fp16|bf16)(?P<quantised>i8|i4|i3)?"
    r"(?: \*(?P<layers>\d+)(?P<streams>\+)?)?"
)
_ONE_STAGE = "'<device> <dtype>' with device cpu, cuda, cuda:N or mps and dtype fp32, fp16 or bf16"
_STAGES = (
    f"{_ONE_STAGE}; the dtype may end in i8, a '*10' behind it says for how many layers, '*10+' "
    "streams the rest, and ' -> ' goes on to the next device"
)


@dataclass(frozen=True)
class Stage:
    """One device's share of the layers.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``dml``.
        dtype: ``fp32``, ``fp16`` or ``bf16``, in which it computes.
        int8: Whether matrices are kept in 8 bits.
        layers: Number of layers, ``None`` for all that are left.
        streams: Whether layers beyond `layers` are copied to the device at each use.
    """

    device: str
    dtype: str
    int8: bool = False
    layers: int | None = None
    streams: bool = False

    def __str__(self) -> str:
        """Returns the stage as the package writes it."""
        count = "" if self.layers is None else f" *{self.layers}{'+' * self.streams}"
        return f"{self.device} {self.dtype}{'i8' * self.int8}{count}"


@dataclass(frozen=True)
class Strategy:
    """The stages of a model, first layer to last.

    Example:
        >>> str(Strategy.parse("cuda fp16 *10->cpu  fp32"))
        'cuda fp16 *10 -> cpu fp32'
    """

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        """Returns the canonical string."""
        return " -> ".join(map(str, self.stages))

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Reads a strategy.

        Args:
            text: ``"auto"`` or a string of the `rwkv` package. ``auto`` is ``cuda fp16`` where
                there is a card and ``cpu fp32`` elsewhere.

        Raises:
            ModelLoadError: The package has no such strategy.
        """
        if text.strip() == "auto":
            text = "cuda fp16" if torch.cuda.is_available() else "cpu fp32"
        return cls(tuple(_stage(part, text) for part in text.split("->")))

    @property
    def on_cuda(self) -> bool:
        """Whether any layer runs on a CUDA device."""
        return any(stage.device.startswith("cuda") for stage in self.stages)

    def require_devices(self) -> None:
        """Checks that this machine has every device of the strategy.

        Raises:
            ModelLoadError: It has not.
        """
        for stage in self.stages:
            missing = _missing(stage.device)
            if missing:
                raise ModelLoadError(
                    f"The strategy {str(self)!r} asks for {stage.device!r}, but {missing}: "
                    "use 'auto' or 'cpu fp32'."
                )

    def require_for(self, version: str) -> None:
        """Checks that the package runs this strategy for a version of RWKV.

        Raises:
            ModelLoadError: It does not.
        """
        stage = self.stages[0]
        plain = len(self.stages) == 1 and stage.layers is None and not stage.int8
        if version == "7" and (not plain or stage.device == "dml"):
            raise ModelLoadError(
                f"The strategy {str(self)!r} is not possible for RWKV-7, which the rwkv package "
                f"runs on one device without int8: use 'auto' or {_ONE_STAGE}."
            )


def _stage(part: str, text: str) -> Stage:
    match = _STAGE.fullmatch(" ".join(part.split()))
    if match is None or match["quantised"] in ("i4", "i3"):
        raise ModelLoadError(f"The strategy {text!r} is not known: use 'auto' or {_STAGES}.")
    return Stage(
        match["device"],
        match["dtype"],
        match["quantised"] == "i8",
        int(match["layers"]) if match["layers"] else None,
        match["streams"] is not None,
    )


def _missing(device: str) -> str | None:
    """Returns what this machine lacks for a device, ``None`` where it has it."""
    if device == "mps":
        return None if torch.backends.mps.is_available() else "PyTorch finds no Apple GPU"
    if device == "dml":
        found = importlib.util.find_spec("torch_directml")
        return None if found else "torch_directml is not installed"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            return "PyTorch finds no CUDA device"
        index, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        return None if index < count else f"there are only {count} CUDA devices"
    return None
