"""Runs RWKV-7 over many states at once, by the best pass that this machine has.

`NativeModel` turns ids into rows, keeps a pass within a bounded number of rows, so that a long
prompt neither takes memory by its length nor holds up everybody else, and chooses between the
compiled pass and the plain one; the arithmetic is theirs. CUDA cards have `cuda.model.CudaModel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from langchain_rwkv_state.runtime.base import Budgets
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.held import Held
from langchain_rwkv_state.runtime.native import build
from langchain_rwkv_state.runtime.native.arrays import StateArrays
from langchain_rwkv_state.runtime.native.compiled import LARGEST_HEAD, CompiledPass, rounded
from langchain_rwkv_state.runtime.native.plain import PlainPass, Segments
from langchain_rwkv_state.runtime.native.weights import Layer, Weights
from langchain_rwkv_state.runtime.slots import Reads, check_reads
from langchain_rwkv_state.runtime.strategy import DTYPES, Stage
from langchain_rwkv_state.state import RWKVState, StateLayout

if TYPE_CHECKING:
    from langchain_rwkv_state.runtime.handle import RuntimeHandle

MAX_ROWS = Budgets.most_rows
"""Most ids read in one pass: more is no faster, and takes more memory."""

NO_COMPILER = (
    "no compiler built the pass for this processor, so PyTorch alone runs it: install g++ or "
    "clang++ (RWKV_STATE_COMPILED=0 says that this is meant)"
)
"""The fallback of a CPU."""


class NativeModel:
    """One loaded RWKV-7.

    Args:
        tensors: The weights, as `read_tensors` gave them; emptied.
        checkpoint: What they are.
        stage: Device and dtype; one for the whole model.
        compiled: Whether to use the compiled pass; ``None`` for wherever it can be had.

    Attributes:
        layout: Names, shapes and dtypes of its states.
        weights: First part of its fingerprint.
        compute: Second part: the arithmetic, as `Stage.compute` names it.
        vocab_size: Number of logits, V.
        is_compiled: Whether the compiled pass is used.
        about: What runs it, in words.
        fallbacks: What runs slower than it could; behind a colon, what to do.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        checkpoint: Checkpoint,
        stage: Stage,
        *,
        compiled: bool | None = None,
    ) -> None:
        sorted_weights = Weights.of(tensors, checkpoint.n_layer)
        tensors.clear()
        self._dtype = DTYPES[stage.dtype]
        self._device = torch.device(stage.device)
        self.layout = StateLayout.of(
            7,
            n_layer=checkpoint.n_layer,
            n_embd=checkpoint.n_embd,
            head_size=checkpoint.head_size,
            shift_dtype=stage.dtype,
        )
        self.weights = checkpoint.weights
        self.compute = stage.compute
        self.vocab_size = checkpoint.vocab_size
        self._emb = sorted_weights.emb
        norm = sorted_weights.emb_norm
        self._emb_norm = (
            norm.weight.to(self._dtype, copy=True),
            norm.bias.to(self._dtype, copy=True),
        )
        fits = stage.device == "cpu" and self._dtype == torch.float32
        fits = fits and checkpoint.head_size <= LARGEST_HEAD
        library = build.library() if fits and compiled is not False and build.enabled() else None
        if compiled and library is None:
            raise ValueError("The compiled pass is not to be had here for this model.")
        self.is_compiled = library is not None
        by = "compiled for this processor" if self.is_compiled else "on PyTorch alone"
        self.about = f"the native runtime, {by}"
        missing = fits and library is None and compiled is None and build.enabled()
        self.fallbacks = (NO_COMPILER,) if missing else ()
        self._pass: CompiledPass | PlainPass
        if library is not None:
            self._pass = CompiledPass(
                sorted_weights, checkpoint.head_size, library, int8=stage.int8
            )
        else:
            if stage.int8:
                sorted_weights = _rounded(sorted_weights)
            self._pass = PlainPass(sorted_weights, checkpoint.head_size, self._dtype, self._device)

    def zero_tensors(self) -> Mapping[str, torch.Tensor]:
        """Returns those tensors of the first state that are not zero: none."""
        return {}

    def slots(self, handle: RuntimeHandle, count: int) -> NativeSlots:
        """Returns room for `count` states of a handle's runtime, advanced in place."""
        return NativeSlots(handle, self, count)

    def arrays(self, count: int) -> StateArrays:
        """Returns room for `count` states, all zero."""
        return StateArrays(self.layout, count, self._device)

    def read(self, arrays: StateArrays, reads: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Reads ids into slots.

        Args:
            arrays: The states; the named slots are updated in place.
            reads: Slots, each at most once, and ids, each at least one and in ``[0, V)``.

        Returns:
            Logits after the last id of each pair, ``[len(reads), V]``, fp32, on the CPU.
        """
        left = [list(ids) for _, ids in reads]
        if sum(map(len, left)) <= MAX_ROWS:
            return self._one_pass(arrays, [slot for slot, _ in reads], left)
        logits = torch.empty(len(reads), self.vocab_size)
        waiting = list(range(len(reads)))
        while waiting:
            room, taken = MAX_ROWS, {}
            for number in waiting:
                if room:
                    taken[number], left[number] = left[number][:room], left[number][room:]
                    room -= len(taken[number])
            slots = [reads[number][0] for number in taken]
            logits[list(taken)] = self._one_pass(arrays, slots, list(taken.values()))
            waiting = [number for number in waiting if left[number]]
        return logits

    def forward_batch(
        self, tokens: Sequence[list[int]], states: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Reads sequences from the tensors of states.

        Args:
            tokens: Ids, at least one for each sequence.
            states: As many states' tensors, in the layout's order; left as they are.

        Returns:
            Logits ``[B, V]`` and the new tensors of each state, on the CPU.
        """
        arrays = self.arrays(len(states))
        for slot, tensors in enumerate(states):
            arrays.put(slot, tensors)
        logits = self.read(arrays, list(enumerate(tokens)))
        return logits, [arrays.get(slot) for slot in range(len(states))]

    def _one_pass(
        self, arrays: StateArrays, slots: list[int], rows: list[list[int]]
    ) -> torch.Tensor:
        start, ids = [0], []
        for row in rows:
            ids += row
            start.append(len(ids))
        # A caller's autocast would change the dtypes.
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            x = self._emb[ids].to(self._dtype)
            x = functional.layer_norm(x, x.shape[1:], *self._emb_norm)
            segments = Segments(tuple(start), tuple(slots))
            logits = self._pass(x.to(self._device), segments, arrays)
            return logits.to("cpu", torch.float32)


class NativeSlots:
    """Slots in a native model's own arrays: tensors, and what the state in each stands for.

    Args:
        handle: The runtime that the states belong to.
        model: Its model.
        count: Number of slots.
    """

    def __init__(self, handle: RuntimeHandle, model: NativeModel, count: int) -> None:
        self._handle = handle
        self._model = model
        self._arrays = model.arrays(count)
        self._held: list[Held | None] = [None] * count

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self._held)

    def put(self, slot: int, state: RWKVState) -> None:
        """Copies a state into a slot.

        Raises:
            StateMismatch: It belongs to other weights or another compute dtype.
        """
        self._handle.require(state)
        self._arrays.put(slot, [state.shared(name) for name in state])
        self._held[slot] = Held.of(state)

    def get(self, slot: int) -> RWKVState:
        """Returns a copy of the state in a slot."""
        return self._require(slot).state(self._handle.layout, self._arrays.get(slot))

    def copy(self, source: int, target: int) -> None:
        """Copies the state in one slot into another, where it lies."""
        held = self._require(source)
        self._arrays.copy(source, target)
        self._held[target] = held.copied()

    def read(self, reads: Reads) -> torch.Tensor:
        """Reads ids into slots, in one pass.

        Raises:
            ValueError: There is nothing to read, an id is out of range, or a slot comes twice.
            ModelLoadError: The handle was closed.
        """
        self._handle.require_open()
        check_reads(slot for slot, _ in reads)
        held = [self._require(slot) for slot, _ in reads]
        checked = [(slot, self._handle.checked(ids)) for slot, ids in reads]
        logits = self._model.read(self._arrays, checked)
        for one, (_, ids) in zip(held, checked, strict=True):
            one.read(ids)
        return logits

    def clear(self, slot: int) -> None:
        """Lets a slot's state go."""
        self._held[slot] = None

    def _require(self, slot: int) -> Held:
        held = self._held[slot]
        if held is None:
            raise ValueError(f"Slot {slot} is empty: put a state into it first.")
        return held


def _rounded(weights: Weights) -> Weights:
    """Returns weights whose large matrices have the values that 8 bits can say."""

    def through(weight: torch.Tensor) -> torch.Tensor:
        integers, scale = rounded(weight)
        return integers * scale.unsqueeze(1)

    def layer_through(layer: Layer) -> Layer:
        return replace(
            layer,
            receptance=through(layer.receptance),
            key=through(layer.key),
            value=through(layer.value),
            output=through(layer.output),
            ffn_key=through(layer.ffn_key),
            ffn_value=through(layer.ffn_value),
        )

    layers = list(map(layer_through, weights.handed_over()))
    return replace(weights, layers=layers, head=through(weights.head))
