"""Holds everything that an RWKV model remembers of a conversation as one value: `RWKVState`.

A state holds named tensors and knows where it came from; it does not run a model and does not store
itself anywhere but in a file it is told to. Indexing gives copies, so that a state, once made,
stays what it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state._files import write_whole
from langchain_rwkv_state._text import model_shape, size
from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.state import codec as codecs
from langchain_rwkv_state.state.codec_names import CodecName
from langchain_rwkv_state.state.container import as_bytes
from langchain_rwkv_state.state.derivation import Derivation
from langchain_rwkv_state.state.header import read_state_file
from langchain_rwkv_state.state.layout import StateLayout
from langchain_rwkv_state.state.regular_file import open_plain


class RWKVState(Mapping[str, torch.Tensor]):
    """An immutable RWKV state of fixed size.

    Args:
        layout: Names, shapes and dtypes of the tensors.
        tensors: One tensor for each name of the layout.
        derivation: What the state was made from.
        system_digest: Digest of the system messages that the conversation began with, or ``None``.

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

    __slots__ = ("_derivation", "_layout", "_system_digest", "_tensors")

    def __init__(
        self,
        layout: StateLayout,
        tensors: Mapping[str, torch.Tensor],
        derivation: Derivation,
        *,
        system_digest: str | None = None,
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
        self._system_digest = system_digest

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
    def system_digest(self) -> str | None:
        """Digest of the system messages that the conversation began with."""
        return self._system_digest

    @property
    def block(self) -> str | None:
        """The same as `system_digest`: its name in the file format."""
        return self._system_digest

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
            f"RWKVState({self._shape}, "
            f"n_tokens={self.n_tokens}, nbytes={self.nbytes}, fingerprint={self.fingerprint!r})"
        )

    @property
    def _shape(self) -> str:
        return model_shape(self._layout.version, self._layout.n_layer, self._layout.n_embd)

    def _repr_html_(self) -> str:
        return markup.facts(
            "RWKVState",
            {
                "model": self._shape,
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

    def with_tensors(
        self, tensors: Mapping[str, torch.Tensor], derivation: Derivation
    ) -> RWKVState:
        """Returns a state of the same layout and system digest, with other numbers and origin."""
        return RWKVState(self._layout, tensors, derivation, system_digest=self._system_digest)

    def advanced(self, tensors: Mapping[str, torch.Tensor], tokens: Iterable[int]) -> RWKVState:
        """Returns the state that a model gives after reading `tokens` from this one."""
        return self.with_tensors(tensors, self._derivation.read(tokens))

    def with_system_digest(self, digest: str | None) -> RWKVState:
        """Returns the same state with another digest of the system messages."""
        return RWKVState(self._layout, self._tensors, self._derivation, system_digest=digest)

    def with_fingerprint(self, fingerprint: str) -> RWKVState:
        """Returns the same numbers under another fingerprint (the caller vouches for it)."""
        return self.with_tensors(self._tensors, replace(self._derivation, fingerprint=fingerprint))

    def to(self, device: str | torch.device) -> RWKVState:
        """Returns the state with all tensors on `device` (itself where they are there already)."""
        target = torch.device(device)
        if all(tensor.device == target for tensor in self._tensors.values()):
            return self
        moved = {name: tensor.to(target) for name, tensor in self._tensors.items()}
        return self.with_tensors(moved, self._derivation)

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
            self.with_tensors(
                {name: tensor.clone() for name, tensor in self._tensors.items()}, self._derivation
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
        write_whole(path, *codecs.encode_parts(codecs.lossy(self, codec), codec=codec))

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
        with open_plain(path) as file:
            data = read_state_file(file)
        return decode(data, fingerprint=fingerprint).state


def decode(
    data: bytes, *, fingerprint: str | None = None, ref: str | None = None
) -> codecs.Decoded:
    """Reads what `encode` wrote.

    Args:
        data: The bytes of the file.
        fingerprint: If given, the model that the state must belong to.
        ref: If given, the reference that the header must name.

    Raises:
        StateCorrupt: The bytes are truncated, changed, foreign or of a later format.
        StateMismatch: The state belongs to another model than `fingerprint`.
    """
    return codecs.decoded(data, RWKVState, fingerprint=fingerprint, ref=ref)


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
