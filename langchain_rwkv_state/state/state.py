"""`RWKVState`: everything that an RWKV model remembers of a conversation, as one value.

A state holds named tensors and knows where it came from; it does not run a model and does not
store itself anywhere but in a file it is told to. The easy mistake is to change a tensor of it:
indexing gives copies, so that a state, once made, stays what it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state._files import write_whole
from langchain_rwkv_state._text import size
from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state.derivation import Derivation
from langchain_rwkv_state.state.layout import StateLayout
from langchain_rwkv_state.state.plain_file import open_plain

if TYPE_CHECKING:
    from langchain_rwkv_state.state.codec_names import CodecName


class RWKVState(Mapping[str, torch.Tensor]):
    """An immutable RWKV state of fixed size.

    Args:
        layout: Names, shapes and dtypes of the tensors.
        tensors: One tensor for each name of the layout.
        derivation: What the state was made from.
        block: Digest of the system block that the conversation began with, ``None`` for none.

    Raises:
        StateMismatch: A tensor is missing, unknown, or of another shape or dtype.

    Example:
        >>> from langchain_rwkv_state.state import Derivation, StateLayout, zero_state
        >>> state = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> state["blocks.0.att_kv"].shape
        torch.Size([1, 64, 64])
        >>> state.n_tokens
        0
    """

    __slots__ = ("_block", "_derivation", "_layout", "_tensors")

    def __init__(
        self,
        layout: StateLayout,
        tensors: Mapping[str, torch.Tensor],
        derivation: Derivation,
        *,
        block: str | None = None,
    ) -> None:
        extra = sorted(set(tensors) - {spec.name for spec in layout.specs})
        if extra:
            raise StateMismatch(f"An RWKV-{layout.version} state has no tensor {extra[0]!r}.")
        kept: dict[str, torch.Tensor] = {}
        for spec in layout.specs:
            tensor = tensors.get(spec.name)
            if tensor is None:
                raise StateMismatch(f"The state lacks the tensor {spec.name!r}.")
            if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise StateMismatch(
                    f"{spec.name!r} should be {spec.dtype} {list(spec.shape)}, "
                    f"got {tensor.dtype} {list(tensor.shape)}."
                )
            kept[spec.name] = _compact(tensor)
        self._layout = layout
        self._tensors = kept
        self._derivation = derivation
        self._block = block

    @property
    def layout(self) -> StateLayout:
        """Names, shapes and dtypes of the tensors."""
        return self._layout

    @property
    def derivation(self) -> Derivation:
        """Model, root and hash of the tokens read: what a reference is made from."""
        return self._derivation

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that the state belongs to."""
        return self._derivation.fingerprint

    @property
    def n_tokens(self) -> int:
        """Number of tokens that the state stands for."""
        return self._derivation.n_tokens

    @property
    def block(self) -> str | None:
        """Digest of the system block that the conversation began with."""
        return self._block

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())

    @property
    def device(self) -> torch.device:
        """Device of the first tensor (a strategy may spread layers over several)."""
        return next(iter(self._tensors.values())).device

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns a copy of one tensor, such as ``state["blocks.0.att_kv"]``."""
        return self.shared(name).clone()

    def __iter__(self) -> Iterator[str]:
        """Iterates over the tensors' names, layer by layer."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Says whether both have one derivation and the same bits."""
        if not isinstance(other, RWKVState):
            return NotImplemented
        return (
            self._derivation == other._derivation
            and self._layout == other._layout
            and all(_same_bits(self._tensors[name], other._tensors[name]) for name in self)
        )

    def __hash__(self) -> int:
        """Hashes the derivation."""
        return hash(self._derivation)

    def __repr__(self) -> str:
        """Shows size and origin, never numbers."""
        return (
            f"RWKVState(RWKV-{self._layout.version}, {self._layout.n_layer}x{self._layout.n_embd}, "
            f"n_tokens={self.n_tokens}, nbytes={self.nbytes}, fingerprint={self.fingerprint!r})"
        )

    def _repr_html_(self) -> str:
        layout = self._layout
        return markup.facts(
            "RWKVState",
            {
                "model": f"RWKV-{layout.version}, {layout.n_layer} x {layout.n_embd}",
                "tokens": self.n_tokens,
                "size": size(self.nbytes),
                "tensors": len(self),
                "device": self.device,
                "fingerprint": self.fingerprint,
            },
        )

    def shared(self, name: str) -> torch.Tensor:
        """Returns one tensor without copying it: for runtimes, which must not change it."""
        try:
            return self._tensors[name]
        except KeyError:
            self._layout[name]
            raise

    def advanced(self, tensors: Mapping[str, torch.Tensor], tokens: Iterable[int]) -> RWKVState:
        """Returns the state that a model gives after reading `tokens` from this one."""
        return RWKVState(self._layout, tensors, self._derivation.read(tokens), block=self._block)

    def with_block(self, block: str | None) -> RWKVState:
        """Returns the same state with another digest of the system block."""
        return RWKVState(self._layout, self._tensors, self._derivation, block=block)

    def with_fingerprint(self, fingerprint: str) -> RWKVState:
        """Returns the same numbers under another fingerprint (the caller vouches for it)."""
        derivation = replace(self._derivation, fingerprint=fingerprint)
        return RWKVState(self._layout, self._tensors, derivation, block=self._block)

    def to(self, device: str | torch.device) -> RWKVState:
        """Returns the state with all tensors on `device` (itself where they are there already)."""
        target = torch.device(device)
        if all(tensor.device == target for tensor in self._tensors.values()):
            return self
        moved = {name: tensor.to(target) for name, tensor in self._tensors.items()}
        return RWKVState(self._layout, moved, self._derivation, block=self._block)

    def repeat(self, count: int) -> list[RWKVState]:
        """Returns as many copies of the state, no two of which share memory.

        ``[state] * count`` is one state under many names. That does no harm as long as everybody
        keeps to this class, whose tensors nobody can change; a list of plain tensors, as the `rwkv`
        package takes it, is changed in place by the first sequence for all others.

        Args:
            count: How many, at least 0.

        Raises:
            ValueError: `count` is negative.

        Example:
            >>> from langchain_rwkv_state.state import StateLayout, zero_state
            >>> state = zero_state(StateLayout.of(4, n_layer=1, n_embd=64), "model")
            >>> [copy == state for copy in state.repeat(2)]
            [True, True]
        """
        if count < 0:
            raise ValueError(f"A state cannot be repeated {count} times.")
        return [
            RWKVState(
                self._layout,
                {name: tensor.clone() for name, tensor in self._tensors.items()},
                self._derivation,
                block=self._block,
            )
            for _ in range(count)
        ]

    def save(self, path: str | os.PathLike[str], *, codec: CodecName = "exact") -> None:
        """Writes the state to a file, whole or not at all, readable by its owner alone.

        Args:
            path: Where to write; an existing file is replaced in one step.
            codec: How the numbers are kept: ``"exact"`` and ``"zstd"`` lose nothing. What comes
                back from one of the others is `lossy(state, codec)`, a state of its own.

        Raises:
            ValueError: The codec is unknown, or cannot keep NaN or infinity.
        """
        from langchain_rwkv_state.state.codec import encode_parts, lossy

        write_whole(path, *encode_parts(lossy(self, codec), codec=codec))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, fingerprint: str | None = None) -> RWKVState:
        """Reads a state that `save` wrote.

        Args:
            path: The file.
            fingerprint: If given, the model that the state must belong to.

        Raises:
            StateCorrupt: The file is truncated, changed, foreign or of a later format, or is no
                plain file; a pipe or a device is not waited for.
            StateMismatch: It belongs to another model.
        """
        from langchain_rwkv_state.state.codec import decode
        from langchain_rwkv_state.state.header import read_state_file

        with open_plain(path) as file:
            data = read_state_file(file)
        return decode(data, fingerprint=fingerprint).state


def zero_state(layout: StateLayout, fingerprint: str) -> RWKVState:
    """Returns the state of a model that has read nothing.

    RWKV-4 starts its log-scale ``att_pp`` at -1e30, as the `rwkv` package does: beside a scale of
    exp(0) a first token whose key is far below zero would vanish.
    """
    tensors = {
        spec.name: torch.from_numpy(
            np.full(spec.shape, -1e30 if spec.name.endswith("att_pp") else 0.0, np.float32)
        ).to(spec.dtype)
        for spec in layout.specs
    }
    return RWKVState(layout, tensors, Derivation(fingerprint))


def require_states(function: str, *values: object, verb: str | None = None) -> None:
    """Checks that what a function is given are states, and not what they are found by.

    Args:
        function: Its name, for the message.
        values: What it was given.
        verb: The store's verb that takes names, such as ``store.blend(...)``; ``None`` for none.

    Raises:
        TypeError: One is a session's name, a reference, or anything else.
    """
    for value in values:
        if isinstance(value, RWKVState):
            continue
        if not isinstance(value, str):
            raise TypeError(f"{function} takes an RWKVState, got {value!r:.100}.")
        use = f"{verb}, or " if verb else ""
        if value.startswith("rwkv1-"):
            raise TypeError(
                f"{function} takes states, and {value!r:.100} is a reference: use {use}"
                "store.get(ref)."
            )
        raise TypeError(
            f"{function} takes states, and {value!r:.100} is a session's name or reference: use "
            f"{use}store.get(store.head(name))."
        )


def require_finite(state: RWKVState) -> None:
    """Checks that all numbers of a state are numbers.

    Raises:
        StateCorrupt: One is NaN or infinite; the message names the tensor.
    """
    for name in state:
        if not _all_finite(state.shared(name)):
            raise StateCorrupt(
                f"The state's tensor {name!r} holds NaN or infinity, as after an overflow, so that "
                "nothing could be read from it: it is not kept. Load the model in fp32 or bf16; if "
                "it does the same there, its file is damaged."
            )


def _all_finite(tensor: torch.Tensor) -> bool:
    """Says whether all numbers of a tensor are finite; at the speed of memory, on one thread."""
    if not tensor.is_cpu:
        return bool(torch.isfinite(tensor).all())
    exponent = _EXPONENTS.get(tensor.dtype)
    if exponent is not None:
        bits = as_bytes(tensor.contiguous()).view(np.uint16)
        return bool(((bits & exponent) != exponent).all())
    numbers = tensor.contiguous().numpy()
    with np.errstate(all="ignore"):
        total = np.add.reduce(numbers, axis=None)
    return bool(np.isfinite(total) or np.isfinite(numbers).all())  # finite numbers may overflow


_EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""Bits that are all set in a 16-bit number that is infinite or NaN, and in no other."""


def as_bytes(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns a contiguous CPU tensor's bytes, shared, the last dimension longer by its item size.

    States are copied through these and not by PyTorch, whose copies of more than 32,768 numbers
    start a pool of OpenMP threads for the calling thread. Where pools outnumber the cores, their
    threads sleep between operations instead of spinning, and the model, on another thread, decodes
    at two thirds of its speed.
    """
    return tensor.view(torch.uint8).numpy()


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Detaches a tensor from any larger storage that it is a view of."""
    plain = tensor.detach()
    if plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.nbytes:
        return plain
    if plain.is_contiguous() and plain.is_cpu:
        return torch.from_numpy(as_bytes(plain).copy()).view(plain.dtype)
    return plain.clone(memory_format=torch.contiguous_format)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    one, other = (as_bytes(t.cpu().contiguous()) for t in (a, b))
    return np.array_equal(one, other)
