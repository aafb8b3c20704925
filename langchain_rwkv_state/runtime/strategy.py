"""Reads strategies: where each layer of a model runs and in which dtypes, as one short string.

The strings are those of the `rwkv` package, and some more. This module refuses what the package
would take and then not do, and knows which models the native runtime takes over; it loads nothing.
The package's own check is not enough: it accepts ``fp16i4`` and computes in fp16, and for RWKV-7 it
silently drops everything behind the second word.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from dataclasses import dataclass
from typing import Literal

import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime import cards

_STAGE = re.compile(
    r"(?P<device>cpu|cuda(?::\d+)?|mps|dml) (?P<dtype>fp32|fp16|bf16)(?P<quantised>i8|i4|i3)?"
    r"(?: \*(?P<layers>\d+)(?P<streams>\+)?)?"
)
_NATIVE = re.compile(
    r"(?P<device>cpu|cuda(?::\d+)?|mps) (?P<dtype>fp32|fp16|bf16|int8|fp8)(?P<states> state_fp16)?"
)
_PREFIXES = ("native", "package")
_ONE_STAGE = "'<device> <dtype>' with device cpu, cuda, cuda:N or mps and dtype fp32, fp16 or bf16"
_KNOWN = (
    f"'auto', {_ONE_STAGE}, 'cpu int8', 'cuda int8' or 'cuda fp8', each with 'native' before it "
    "for the native runtime alone, and on cuda with 'state_fp16' behind it; or, with 'package' "
    "before it where the rwkv package is to run RWKV-7 too, its own, where the dtype may end in "
    "i8, a '*10' behind it says for how many layers, '*10+' streams the rest, and ' -> ' goes on "
    "to the next device"
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_EXAMPLES = (
    "cpu fp32",
    "cpu int8",
    "cuda fp16",
    "cuda bf16",
    "cuda int8",
    "cuda fp8",
    "cuda fp16 state_fp16",
)
_SPOILT = (
    "this process was forked from one that had started CUDA, so that it can use no card: load "
    "models behind the fork, start workers by 'spawn', or name 'cpu fp32'"
)
_COMPUTES = {"as_is": "", "int8": "w8", "fp8": "f8"}


@dataclass(frozen=True)
class Stage:
    """One device's share of the layers.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``dml``.
        dtype: ``fp32``, ``fp16`` or ``bf16``, in which it computes.
        weights: How large matrices are kept: ``as_is`` for in `dtype` (on a CPU, in that of their
            file), ``int8`` or ``fp8``.
        layers: Number of layers, ``None`` for all that are left.
        streams: Whether layers beyond `layers` are copied to the device at each use.
        state_dtype: ``fp32`` or ``fp16``, in which WKV states lie on the device.
    """

    device: str
    dtype: str
    weights: Literal["as_is", "int8", "fp8"] = "as_is"
    layers: int | None = None
    streams: bool = False
    state_dtype: Literal["fp32", "fp16"] = "fp32"

    @property
    def int8(self) -> bool:
        """Whether large matrices are kept in 8-bit integers."""
        return self.weights == "int8"

    @property
    def on_cuda(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.startswith("cuda")

    @property
    def compute(self) -> str:
        """The arithmetic of the native runtime, as a fingerprint names it.

        Whatever rounds otherwise has another name, so that no state goes from one to the other
        unnoticed. States themselves are the same to look at: their WKV tensors are fp32 outside of
        the card, also where it keeps them in fp16.

        Example:
            >>> Strategy.parse("cuda int8 state_fp16").stages[0].compute
            'fp16w8s16'
        """
        if self.int8 and self.dtype == "fp32":
            return "int8"
        return self.dtype + _COMPUTES[self.weights] + "s16" * (self.state_dtype == "fp16")

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
        >>> str(Strategy.parse("package cuda fp16"))
        'package cuda fp16'
    """

    stages: tuple[Stage, ...]
    runtime: Literal["auto", "native", "package"] = "auto"

    def __str__(self) -> str:
        """Returns the canonical string."""
        if self.runtime == "native":
            stage = self.stages[0]
            dtype = stage.dtype if stage.weights == "as_is" else stage.weights
            states = "" if stage.state_dtype == "fp32" else f" state_{stage.state_dtype}"
            return f"native {stage.device} {dtype}{states}"
        return "package " * (self.runtime == "package") + self.for_package

    @property
    def for_package(self) -> str:
        """The string as the package reads it."""
        return " -> ".join(map(str, self.stages))

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Reads a strategy; for ``auto`` it asks whether there is a card.

        Args:
            text: ``"auto"``, ``"<device> <dtype>"``, or another string of the `rwkv` package.
                ``auto`` is ``cuda fp16`` where there is a card and ``cpu fp32`` elsewhere.
                RWKV-7 runs on the native runtime, unless ``package`` stands first; ``native``
                there refuses all other models. ``int8``, ``fp8`` and ``state_fp16`` are known to
                the native runtime alone.

        Raises:
            ModelLoadError: There is no such strategy.
        """
        words = text.split()
        if words == ["auto"]:
            if (
                cards.spoilt()
            ):  # it was a card's before the fork, and must not become a CPU's unsaid
                raise ModelLoadError(f"The strategy 'auto' finds that {_SPOILT}.")
            device, dtype = ("cuda", "fp16") if cards.usable() else ("cpu", "fp32")
            return cls((Stage(device, dtype),))
        prefix = words[0] if words[:1] and words[0] in _PREFIXES else "auto"
        rest = " ".join(words[prefix != "auto" :])
        native = _NATIVE.fullmatch(rest)
        only = native and (native["dtype"] in ("int8", "fp8") or native["states"])
        if native and prefix != "package" and (only or prefix == "native"):
            return cls((_native_stage(native, text),), "native")
        if "state_" in rest:
            raise ModelLoadError(
                f"The strategy {text!r} asks for a dtype of WKV states, which the native runtime "
                "alone can choose, and only fp16 on a CUDA card: write 'cuda fp16 state_fp16', or "
                "leave the word out."
            )
        if prefix == "native":
            raise _unknown(text)
        stages = tuple(_stage(part, text) for part in rest.split("->"))
        return cls(stages, "package" if prefix == "package" else "auto")

    @classmethod
    def check(cls, text: str) -> None:
        """Checks that there is such a strategy, and asks no device: asking may end forks.

        Raises:
            ModelLoadError: There is none.
        """
        if text.split() != ["auto"]:
            cls.parse(text)

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
        return any(stage.on_cuda for stage in self.stages)

    def require_devices(self) -> None:
        """Checks that this machine has every device of the strategy.

        Raises:
            ModelLoadError: It has not.
        """
        for stage in self.stages:
            if stage.on_cuda and cards.spoilt():
                raise ModelLoadError(
                    f"The strategy {str(self)!r} asks for {stage.device!r}, but {_SPOILT}."
                )
            missing = _missing(stage.device)
            if missing:
                raise ModelLoadError(
                    f"The strategy {str(self)!r} asks for {stage.device!r}, but {missing}: "
                    "use 'auto' or 'cpu fp32'; `rwkv-state doctor` says what devices there are."
                )

    def is_native_for(self, version: str, *, deep_embed: bool) -> bool:
        """Says whether the native runtime runs a model.

        Args:
            version: Of RWKV.
            deep_embed: Whether it is a variant of RWKV-7 that only the package knows.

        Raises:
            ModelLoadError: It was asked for, and does not; or it would run the model, but not so.
        """
        known = version == "7" and not deep_embed
        if self.runtime == "native" and not known:
            kind = "with DeepEmbed" if deep_embed else version
            raise ModelLoadError(
                f"The strategy {str(self)!r} is for RWKV-7, and this is an RWKV {kind}: use 'auto' "
                f"or {_ONE_STAGE}."
            )
        if self.runtime == "auto" and known and not self._is_plain:
            why = "runs a model on one device"
            if len(self.stages) == 1 and self.stages[0].int8:
                why = "has 8 bits of its own, not the package's i8"
            raise ModelLoadError(
                f"The strategy {str(self)!r} is not possible for RWKV-7: the native runtime "
                f"{why}. Use 'auto' or {_ONE_STAGE}; where the card's memory is short, 'cuda int8' "
                "or 'cuda fp8', or a smaller model."
            )
        return known and self.runtime != "package"

    def require_for(self, version: str) -> None:
        """Checks that the package runs this strategy for a version of RWKV.

        Raises:
            ModelLoadError: It does not.
        """
        if version == "7" and not self._is_plain:
            raise ModelLoadError(
                f"The strategy {str(self)!r} is not possible for RWKV-7, which the rwkv package "
                f"runs on one device without int8: use 'auto' or {_ONE_STAGE}."
            )

    @property
    def _is_plain(self) -> bool:
        """Whether it is one device that RWKV-7 runs on, for all layers, in one dtype."""
        stage = self.stages[0]
        plain = len(self.stages) == 1 and stage.layers is None and stage.device != "dml"
        return plain and (self.runtime == "native" or stage.weights == "as_is")


def _native_stage(match: re.Match[str], text: str) -> Stage:
    device, dtype, states = match["device"], match["dtype"], match["states"]
    on_cuda = device.startswith("cuda")
    if (dtype == "fp8" or states) and not on_cuda:
        what = "keeps weights in fp8" if dtype == "fp8" else "keeps WKV states in fp16"
        raise ModelLoadError(
            f"The strategy {text!r} {what}, which is only possible on a CUDA card: use 'cuda' for "
            f"{device!r}, or on this device 'fp32' or 'int8' without more."
        )
    state_dtype: Literal["fp32", "fp16"] = "fp16" if states else "fp32"
    if dtype not in ("int8", "fp8"):
        return Stage(device, dtype, state_dtype=state_dtype)
    weights: Literal["int8", "fp8"] = "fp8" if dtype == "fp8" else "int8"
    return Stage(device, "fp16" if on_cuda else "fp32", weights, state_dtype=state_dtype)


def _stage(part: str, text: str) -> Stage:
    match = _STAGE.fullmatch(" ".join(part.split()))
    if match is None or match["quantised"] in ("i4", "i3"):
        raise _unknown(text)
    return Stage(
        match["device"],
        match["dtype"],
        "int8" if match["quantised"] == "i8" else "as_is",
        int(match["layers"]) if match["layers"] else None,
        match["streams"] is not None,
    )


def _unknown(text: str) -> ModelLoadError:
    nearest = _nearest(text)
    meant = f" Perhaps {nearest!r} was meant." if nearest else ""
    return ModelLoadError(f"The strategy {text!r} is not known: use {_KNOWN}.{meant}")


def _nearest(text: str) -> str | None:
    """Returns what somebody may have meant: a device alone lacks a dtype."""
    words = " ".join(text.lower().split()).replace("float", "fp").replace("gpu", "cuda")
    if re.fullmatch(r"cpu|cuda(:\d+)?|mps", words):
        return f"{words} {'fp32' if words == 'cpu' else 'fp16'}"
    return next(iter(difflib.get_close_matches(words, _EXAMPLES, 1, 0.75)), None)


def _missing(device: str) -> str | None:
    """Returns what this machine lacks for a device, ``None`` where it has it."""
    if device == "mps":
        return None if torch.backends.mps.is_available() else "PyTorch finds no Apple GPU"
    if device == "dml":
        found = importlib.util.find_spec("torch_directml")
        return None if found else "torch_directml is not installed"
    if device.startswith("cuda"):
        if not cards.usable():
            return "PyTorch finds no CUDA device"
        index, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        return None if index < count else f"there are only {count} CUDA devices"
    return None
