"""Turns a state into bytes and back: a safetensors file with a header of its own and a checksum.

The codec turns values into values; it opens no file and knows no store. `docs/state_format.md`
describes the bytes one by one, and `packing` makes the tensors smaller where that is asked for. The
checksum covers every byte of the file, the header too, except itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state.accumulators import renormalise
from langchain_rwkv_state.state.checks import require_states
from langchain_rwkv_state.state.codec_names import CODECS, LOSSY, CodecName, require_codec
from langchain_rwkv_state.state.container import Buffer, Entry, as_bytes, laid_out
from langchain_rwkv_state.state.derivation import Derivation
from langchain_rwkv_state.state.header import HEADER_LIMIT_BYTES, is_later, parsed_header
from langchain_rwkv_state.state.layout import StateLayout, TensorSpec, dtype_name
from langchain_rwkv_state.state.packing import (
    Stack,
    pack,
    require_finite,
    unpack,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.state.state import RWKVState

FORMAT = "langchain-rwkv-state"
FORMAT_VERSION = 1
_CHECKSUM_BYTES = 64  # hex digits of a SHA-256
_BLANK = b"0" * _CHECKSUM_BYTES
_MARK = b'"checksum":"'
_LATEST_SECONDS = 2e12  # Unix time: no state is of a later year than 63,000
_COUNT_MAX = 1 << 53  # the whole numbers that every reader of JSON has
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Decoded:
    """What one file holds.

    Attributes:
        state: The state.
        parent: Reference of the state before it, ``None`` where unknown.
        ref: Reference under which a store keeps it, ``None`` for a plain file.
        created_seconds: Unix time of writing.
        codec: How the numbers were kept.
    """

    state: RWKVState
    parent: str | None
    ref: str | None
    created_seconds: float
    codec: CodecName = "exact"


def encode(
    state: RWKVState,
    *,
    parent: str | None = None,
    ref: str | None = None,
    created_seconds: float | None = None,
    codec: CodecName = "exact",
) -> bytes:
    """Returns a state as the bytes of a file, without loss.

    For writing, `encode_parts` gives the same bytes in pieces and saves copying them.

    Args:
        state: The state; tensors on any device.
        parent: Reference of the state before it.
        ref: Reference under which a store keeps it.
        created_seconds: Unix time; now if not given.
        codec: How the numbers are kept. A lossy one takes only what `lossy` gave: a file never
            holds less than the state that its header names.

    Raises:
        ValueError: The codec is unknown, or would lose something of this state.
    """
    parts = encode_parts(
        state, parent=parent, ref=ref, created_seconds=created_seconds, codec=codec
    )
    return b"".join(parts)


def encode_parts(
    state: RWKVState,
    *,
    parent: str | None = None,
    ref: str | None = None,
    created_seconds: float | None = None,
    codec: CodecName = "exact",
) -> list[Buffer]:
    """Returns the bytes of `encode` in pieces, some of them the state's own memory.

    Args:
        state: See `encode`; so are the others.
        parent: Reference of the state before it.
        ref: Reference under which a store keeps it.
        created_seconds: Unix time; now if not given.
        codec: How the numbers are kept.

    Raises:
        ValueError: As `encode`.
    """
    require_states("encode", state)
    require_codec(codec)
    entries = _entries(state, codec)
    derivation = state.derivation
    about: dict[str, Any] = {
        "block": state.system_digest,
        "codec": codec,
        "created": time.time() if created_seconds is None else created_seconds,
        "fingerprint": derivation.fingerprint,
        "n_tokens": derivation.n_tokens,
        "parent": parent,
        "ref": ref,
        "root": derivation.root,
        "token_hash": derivation.token_hash,
    }
    header = {
        "format": f"{FORMAT}/{FORMAT_VERSION}",
        "about": json.dumps(about, sort_keys=True, separators=(",", ":")),
        "layout": state.layout.to_json(),
        "checksum": _BLANK.decode(),
    }
    blank, body = laid_out(entries, header)
    digest = hashlib.sha256(blank)
    for part in body:
        digest.update(part)
    at = _checksum_at(blank)
    hexadecimal = digest.hexdigest().encode()
    return [blank[:at] + hexadecimal + blank[at + _CHECKSUM_BYTES :], *body]


def lossy(state: RWKVState, codec: CodecName) -> RWKVState:
    """Returns what a codec keeps of a state, as a state of its own.

    Args:
        state: The state; tensors on any device.
        codec: A lossy codec. With a lossless one the state itself is returned.

    Returns:
        The state on the CPU as it comes back from a file of that codec, with a root that names the
        codec: a reference never stands for both. Going through the codec again loses nothing.

    Raises:
        ValueError: The codec is unknown, or the state holds NaN or infinity.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, lossy, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> lossy(zero, "int8").derivation == zero.derivation
        False
    """
    require_states("lossy", state)
    require_codec(codec)
    if codec not in LOSSY:
        return state
    tensors = _unpacked(_packed(_even(state), codec), state.layout, codec)
    return state.with_tensors(tensors, state.derivation.rooted(f"codec:{codec}"))


def _even(state: RWKVState) -> RWKVState:
    """Returns a state whose accumulators, RWKV-4's, have one scale."""
    if state.layout.version != 4:
        return state
    for name in state:
        require_finite(name, state.shared(name).cpu().float().numpy())
    return renormalise(state)


def decoded(
    data: bytes, make: type[RWKVState], *, fingerprint: str | None = None, ref: str | None = None
) -> Decoded:
    """Does what `decode` does; `make` is `RWKVState`, which is built on this module."""
    header = _checked_header(data)
    missing = sorted({"about", "layout"} - header.keys())
    if missing:
        raise StateCorrupt(f"The header lacks {missing[0]!r}.")
    about = _about(header["about"])
    layout = StateLayout.from_json(header["layout"])
    if ref is not None and about["ref"] != ref:
        raise StateCorrupt(f"The file of {ref} holds the state {about['ref']}.")
    if fingerprint is not None and about["fingerprint"] != fingerprint:
        raise StateMismatch(
            f"The state belongs to the model {about['fingerprint']!r}, not to {fingerprint!r}: "
            "load it with the model, tokenizer, template and dtype that made it."
        )
    derivation = Derivation(
        about["fingerprint"], about["root"], about["n_tokens"], about["token_hash"]
    )
    try:
        tensors = _unpacked(safetensors.torch.load(data), layout, about["codec"])
        state = make(layout, tensors, derivation, system_digest=about["block"])
    except (
        *(safetensors.SafetensorError, StateMismatch, LookupError),
        *(ValueError, TypeError, OverflowError, RuntimeError),
    ) as error:
        raise StateCorrupt(f"The tensors do not fit the header: {error!s:.500}") from error
    return Decoded(state, about["parent"], about["ref"], float(about["created"]), about["codec"])


def _stack_name(spec: TensorSpec) -> str:
    """Returns the name in the file of the stack that a layer's tensor is a row of."""
    return f"{spec.name.rpartition('.')[2]}.{dtype_name(spec.dtype)}"


@functools.lru_cache(maxsize=16)  # a store sees one model's layout or two, at every write
def _stacks(layout: StateLayout) -> Mapping[str, tuple[Stack, Sequence[str]]]:
    """Returns the stacks by name, each with the names of its rows.

    The layers' tensors of one kind and dtype are joined, so that the header stays below 2 kB.
    """
    rows: dict[str, list[TensorSpec]] = {}
    for spec in layout.specs:
        rows.setdefault(_stack_name(spec), []).append(spec)
    return {
        name: (
            Stack.of(name, specs[0], len(specs), layout.head_size),
            [spec.name for spec in specs],
        )
        for name, specs in rows.items()
    }


def _entries(state: RWKVState, codec: CodecName) -> dict[str, Entry]:
    """Returns what a file holds; with the codec ``exact`` the state's own memory.

    Raises:
        ValueError: The codec would lose something.
    """
    if codec == "exact":
        return {
            name: Entry(stack.spec.dtype, stack.shape, [_memory(state.shared(row)) for row in rows])
            for name, (stack, rows) in _stacks(state.layout).items()
        }
    packed = _packed(state, codec)
    if codec in LOSSY and not _survives(state, packed, codec):
        raise ValueError(f"The codec {codec!r} would lose digits: encode lossy(state, {codec!r}).")
    return {
        name: Entry(tensor.dtype, tuple(tensor.shape), [_memory(tensor)])
        for name, tensor in packed.items()
    }


def _memory(tensor: torch.Tensor) -> memoryview:
    return as_bytes(tensor.cpu().contiguous()).reshape(-1).data


def _packed(state: RWKVState, codec: CodecName) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file."""
    stored: dict[str, torch.Tensor] = {}
    for stack, names in _stacks(state.layout).values():
        rows = [state.shared(name).cpu() for name in names]
        values = torch.from_numpy(np.stack([as_bytes(row) for row in rows])).view(rows[0].dtype)
        stored |= pack(codec, stack, values)
    return stored


def _unpacked(
    stored: dict[str, torch.Tensor], layout: StateLayout, codec: CodecName
) -> dict[str, torch.Tensor]:
    """Takes apart what `_packed` joined."""
    left, found = set(stored), dict[str, torch.Tensor]()
    for stack, names in _stacks(layout).values():
        left -= {name for name in left if name.startswith(f"{stack.name}.") or name == stack.name}
        found |= zip(names, unpack(codec, stack, stored).unbind(0), strict=True)
    if left:
        raise ValueError(f"the layout has no tensor {min(left)!r}")
    return {spec.name: found[spec.name] for spec in layout.specs}


def _survives(state: RWKVState, packed: dict[str, torch.Tensor], codec: CodecName) -> bool:
    """Says whether a state comes back bit for bit."""
    found = _unpacked(packed, state.layout, codec)
    return all(
        np.array_equal(as_bytes(found[name].contiguous()), as_bytes(state.shared(name).cpu()))
        for name in state
    )


def _checksum_at(data: bytes) -> int:
    """Returns where the checksum's digits stand in the file."""
    end = 8 + int.from_bytes(data[:8], "little")
    found = data.find(_MARK, 8, end)
    if found < 0 or data.find(_MARK, found + 1, end) >= 0:
        raise StateCorrupt("The header holds no checksum, or more than one.")
    return found + len(_MARK)


def _checked_header(data: bytes) -> dict[str, str]:
    """Returns the header's texts once the checksum is known to be right."""
    if len(data) < 8:
        raise StateCorrupt(f"The file is truncated: {len(data)} bytes hold no header.")
    size = int.from_bytes(data[:8], "little")
    if size > HEADER_LIMIT_BYTES:
        raise StateCorrupt("The file is not a state: its header would be too large.")
    if len(data) < 8 + size:
        raise StateCorrupt(f"The file is truncated: its header needs {8 + size} bytes.")
    parsed = parsed_header(data[8 : 8 + size])
    header = parsed["__metadata__"]
    named = str(header["format"])
    name, _, version = named.partition("/")
    if name != FORMAT:
        raise StateCorrupt(f"The file is not a state of this package but {named!r:.200}.")
    if is_later(version, FORMAT_VERSION):
        raise StateCorrupt(
            f"The file has format version {version:.20}; this release reads up to "
            f"{FORMAT_VERSION}: upgrade langchain-rwkv-state."
        )
    at = _checksum_at(data)
    digest = hashlib.sha256(memoryview(data)[:at])
    digest.update(_BLANK)
    digest.update(memoryview(data)[at + _CHECKSUM_BYTES :])
    if digest.hexdigest().encode() != data[at : at + _CHECKSUM_BYTES]:
        raise StateCorrupt("The checksum is wrong: the file was truncated or changed.")
    if version != str(FORMAT_VERSION):
        raise StateCorrupt(f"The format version {version!r:.40} is not known.")
    return {str(key): str(value) for key, value in header.items()}


def _about(text: str) -> dict[str, Any]:
    """Reads and checks the part of the header that says what the state is."""
    try:
        about: dict[str, Any] = json.loads(text)
        texts = [about["fingerprint"], about["root"], about["token_hash"]]
        optional = [about[key] for key in ("block", "parent", "ref")]
        sound = (
            all(isinstance(item, str) for item in texts)
            and all(item is None or isinstance(item, str) for item in optional)
            and type(about["n_tokens"]) is int
            and about["n_tokens"] >= 0
            and type(about["created"]) in (int, float)
            and abs(about["created"]) <= _LATEST_SECONDS
            and about["n_tokens"] <= _COUNT_MAX
            and all(_is_text(item) for item in (*texts, *optional) if item is not None)
            and _HEX.fullmatch(about["token_hash"]) is not None
        )
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise StateCorrupt(f"The header is not readable: {error!s:.200}.") from error
    if not sound:
        raise StateCorrupt("The header's values are out of range.")
    codec = about.get("codec")
    if not isinstance(codec, str) or codec not in CODECS:
        raise StateCorrupt(f"The codec {codec!r:.200} is not known to this release.")
    return about


def _is_text(text: str) -> bool:
    """Says whether a text can be written: JSON can hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
