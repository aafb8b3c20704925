"""Defines what a tokenizer is, and what all of them share: text that UTF-8 holds, bytes to text."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from langchain_rwkv_state.errors import ModelLoadError

_IDENTITY_DIGITS = 16


@runtime_checkable
class Tokenizer(Protocol):
    """What the template and the engine need of a tokenizer; any object with these will do.

    It must be lossless: the bytes of `encode`'s ids, joined, are the text in UTF-8.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id that a conversation begins with, ``None`` for none."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids by which a model ends its text."""
        ...

    @property
    def identity(self) -> str:
        """Short hex digest of the vocabulary: another one gives other states."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, none of them special."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the raw bytes of ids; special and unknown ones have none."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, with U+FFFD for what is not UTF-8."""
        ...


def well_formed(text: str) -> str:
    """Returns text that UTF-8 can hold: surrogate pairs joined, lone surrogates made U+FFFD.

    Example:
        >>> well_formed("a" + chr(0xD83D) + chr(0xDE00) + chr(0xD800)) == "a" + chr(0x1F600) + "�"
        True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class StreamDecoder:
    """Turns raw bytes into text piece by piece, each piece of whole characters.

    The pieces, with that of `flush`, join to ``bytes.decode(errors="replace")`` of the whole.

    Example:
        >>> decoder = StreamDecoder()
        >>> [decoder.push(piece) for piece in (b"caf", bytes([0xC3]), bytes([0xA9]))]
        ['caf', '', 'é']
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def pending(self) -> bytes:
        """Bytes of a character that is not complete yet."""
        return self._decoder.getstate()[0]

    def push(self, piece: bytes) -> str:
        """Returns the characters that `piece` completes."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """Returns U+FFFD for an incomplete character at the end, else nothing."""
        return self._decoder.decode(b"", final=True)


def joined(texts: list[bytes], ids: Iterable[int]) -> bytes:
    """Returns the bytes of ids, one after the other; an id beyond the vocabulary has none."""
    known = len(texts)
    pieces = []
    for index in ids:
        if index < 0:
            raise ValueError(f"Token ids are not negative, got {index}.")
        if index < known:
            pieces.append(texts[index])
    return b"".join(pieces)


def identity_of(content: bytes) -> str:
    """Returns the short digest by which a tokenizer's file is known."""
    return hashlib.sha256(content).hexdigest()[:_IDENTITY_DIGITS]


def unreadable(path: Path, error: OSError) -> ModelLoadError:
    """Returns the error for a file that cannot be read."""
    return ModelLoadError(
        f"The tokenizer {str(path)!r} cannot be read ({error.strerror or error}): pass "
        "tokenizer='world' or the path of a tokenizer.json."
    )
