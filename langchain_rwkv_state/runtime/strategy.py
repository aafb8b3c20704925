"""Reads strategies: where each layer of a model runs and in which dtypes, as one short string.

The strings are those of the `rwkv` package. This module refuses what the package would take and
then not do, and knows which models the native runtime takes over; it loads nothing. The package's
own check is not enough: it accepts ``fp16i4`` and computes in fp16, and for RWKV-7 it silently
drops everything behind the second word.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Literal

import torch

from langchain_rwkv_state.errors import ModelLoadError

_STAGE = re.compile(
    r"(?P<device>cpu|cuda(?::\d+)?|mps|dml) (?P<dtype>fp32|fp16|bf16)(?P<quantised>i8|i4|i3)?"
    r"(?: \*(?P<layers>\d+)(?P<streams>\+)?)?"
)
_NATIVE = re.compile(r"(?P<device>cpu|cuda(?::\d+)?|mps) (?P<dtype>fp32|fp16|bf16|int8)")
_NATIVE_STAGE = "'native <device> <dtype>', with the dtypes fp32, fp16, bf16 and int8"
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
    """The stages of a model, first layer to last, and which runtime runs them.

    Attributes:
        stages: At least one; exactly one for the native runtime.
        runtime: ``native`` (RWKV-7 alone), ``package``, or ``auto`` for the native one wherever
            the model is one for it.

    Example:
        >>> str(Strategy.parse("cuda fp16 *10->cpu  fp32"))
        'cuda fp16 *10 -> cpu fp32'
        >>> str(Strategy.parse("cpu int8"))
        'native cpu int8'
    """

    stages: tuple[Stage, ...]
    runtime: Literal["auto", "native", "package"] = "package"

    def __str__(self) -> str:
        """Returns the canonical string."""
        if self.runtime == "native":
            stage = self.stages[0]
            return f"native {stage.device} {'int8' if stage.int8 else stage.dtype}"
        return " -> ".join(map(str, self.stages))

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Reads a strategy.

        Args:
            text: ``"auto"``, ``"native <device> <dtype>"``, or a string of the `rwkv` package.
                ``auto`` is ``cuda fp16`` where there is a card and ``cpu fp32`` elsewhere.
                ``int8`` is known to the native runtime alone, so ``cpu int8`` means it too.

        Raises:
            ModelLoadError: There is no such strategy.
        """
        words = text.split()
        if words == ["auto"]:
            device, dtype = ("cuda", "fp16") if torch.cuda.is_available() else ("cpu", "fp32")
            return cls((Stage(device, dtype),), "auto")
        if words[:1] == ["native"] or words[-1:] == ["int8"]:
            match = _NATIVE.fullmatch(" ".join(words).removeprefix("native "))
            if match is None:
                raise _unknown(text)
            int8 = match["dtype"] == "int8"
            return cls(
                (Stage(match["device"], "fp32" if int8 else match["dtype"], int8),), "native"
            )
        return cls(tuple(_stage(part, text) for part in text.split("->")))

    def as_run(self, *, native: bool) -> str:
        """Returns the string that names what runs, where ``auto`` left that open.

        Example:
            >>> Strategy.parse("cpu fp32").as_run(native=False)
            'cpu fp32'
        """
        return str(Strategy(self.stages, "native") if native else self)

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

    def is_native_for(self, version: str, *, deep_embed: bool) -> bool:
        """Says whether the native runtime runs a model.

        Args:
            version: Of RWKV.
            deep_embed: Whether it is a variant of RWKV-7 that only the package knows.

        Raises:
            ModelLoadError: It was asked for, and does not.
        """
        known = version == "7" and not deep_embed
        if self.runtime == "native" and not known:
            kind = "with DeepEmbed" if deep_embed else version
            raise ModelLoadError(
                f"The strategy {str(self)!r} is for RWKV-7, and this is an RWKV {kind}: use 'auto' "
                f"or {_ONE_STAGE}."
            )
        return known and self.runtime != "package"

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
        raise _unknown(text)
    return Stage(
        match["device"],
        match["dtype"],
        match["quantised"] == "i8",
        int(match["layers"]) if match["layers"] else None,
        match["streams"] is not None,
    )


def _unknown(text: str) -> ModelLoadError:
    return ModelLoadError(
        f"The strategy {text!r} is not known: use 'auto', {_NATIVE_STAGE}, or {_STAGES}."
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
