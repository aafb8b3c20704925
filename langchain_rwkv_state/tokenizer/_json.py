"""Byte-level BPE from a ``tokenizer.json``: opens it, and checks that no text is lost in it."""

from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.tokenizer._port import identity_of, joined, unreadable, well_formed

END_OF_TEXT = "<|endoftext|>"
_LONG = 8192
"""Characters; `tokenizers` lets other threads run while it encodes a batch, but not a text. It
starts threads for that, so what is short goes without."""
_END_NAMES = (END_OF_TEXT, "</s>", "<|im_end|>")


class JsonTokenizer:
    """A byte-level BPE tokenizer from a ``tokenizer.json`` of the `tokenizers` library.

    Such are the 20B tokenizer of the RWKV-4 Pile models and that of the demo model. Truncation,
    padding, dropout and whatever the file adds around a text are switched off.

    Args:
        path: The file.

    Raises:
        ModelLoadError: There is no such file, it is not a tokenizer, or it is one that cannot give
            every text back byte by byte (not byte-level).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise unreadable(self._path, error) from error
        self._identity = identity_of(content)
        self._codec = self._open(content)
        texts, self._special = self._read_vocabulary()
        self._texts = texts
        ends = [self._special[name] for name in _END_NAMES if name in self._special]
        self._eos_ids = frozenset(ends)
        self._bos_id = self._special.get(END_OF_TEXT)
        self._probe()

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return len(self._texts)

    @property
    def bos_id(self) -> int | None:
        """The id of ``<|endoftext|>``, ``None`` where there is none."""
        return self._bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids of ``<|endoftext|>``, ``</s>`` and ``<|im_end|>``, as far as there are."""
        return self._eos_ids

    @property
    def identity(self) -> str:
        """Digest of the file."""
        return self._identity

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, none of them special; lone surrogates become U+FFFD."""
        text = well_formed(text)
        if len(text) < _LONG:
            return list(self._codec.encode(text, add_special_tokens=False).ids)
        [found] = self._codec.encode_batch_fast([text], add_special_tokens=False)
        return list(found.ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the raw bytes of ids; special and unknown ones have none."""
        return joined(self._texts, ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, with U+FFFD for what is not UTF-8."""
        return self.decode_bytes(ids).decode(errors="replace")

    def __repr__(self) -> str:
        """Shows where it came from."""
        return f"JsonTokenizer({str(self._path)!r}, vocab_size={self.vocab_size})"

    def _open(self, content: bytes) -> tokenizers.Tokenizer:
        try:
            raw: dict[str, Any] = json.loads(content)
            for token in raw.get("added_tokens") or ():
                token["special"] = token["special"] or token["content"] in _END_NAMES
            if raw["model"].get("dropout"):
                raw["model"]["dropout"] = None
            codec = tokenizers.Tokenizer.from_str(json.dumps(raw))
        except Exception as error:  # the library raises bare exceptions
            raise ModelLoadError(
                f"{str(self._path)!r} is not a tokenizer.json of the tokenizers library ({error}): "
                "pass another one, or tokenizer='world'."
            ) from error
        if not _mentions(raw.get("pre_tokenizer"), "ByteLevel"):
            raise ModelLoadError(
                f"The tokenizer {str(self._path)!r} ({raw['model'].get('type')}) is not "
                "byte-level, so no text comes back from its tokens byte by byte: RWKV models have "
                "byte-level BPE or the World vocabulary (tokenizer='world')."
            )
        codec.no_truncation()
        codec.no_padding()
        codec.encode_special_tokens = True
        return codec

    def _read_vocabulary(self) -> tuple[list[bytes], dict[str, int]]:
        """Returns the raw bytes of each id and the special tokens' ids by name."""
        added = self._codec.get_added_tokens_decoder()
        vocabulary = self._codec.get_vocab(with_added_tokens=True)
        texts = [b""] * (1 + max(vocabulary.values(), default=-1))
        special: dict[str, int] = {}
        for token, index in vocabulary.items():
            if index in added:
                if added[index].special:
                    special[token] = index
                else:
                    texts[index] = token.encode()
            elif token in _END_NAMES:
                special[token] = index
            else:
                texts[index] = _bytes_of(token)
        return texts, special

    def _probe(self) -> None:
        """Refuses a tokenizer that loses text, be it bytes, blanks or borders."""
        for sample in _PROBES:
            found = self.decode(self.encode(sample))
            if found != sample:
                raise ModelLoadError(
                    f"The tokenizer {str(self._path)!r} does not give back what it reads "
                    f"({sample[:24]!r} becomes {found[:24]!r}): it lacks bytes of the alphabet or "
                    "adds blanks of its own. Train it with the whole byte-level alphabet and "
                    "add_prefix_space=False."
                )


def _mentions(part: object, kind: str) -> bool:
    """Says whether a part of a tokenizer's JSON, or one inside it, is of a type."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_mentions(value, kind) for value in part.values())
    return isinstance(part, list) and any(_mentions(value, kind) for value in part)


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: each byte as one printable character.

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def _bytes_of(token: str) -> bytes:
    alphabet = _alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()  # outside the alphabet: never an output of byte-level BPE


# Every byte that UTF-8 uses (leading and following ones), and the template's borders. In NFC, since
# the 20B tokenizer composes what it reads; that changes no meaning.
_PROBES = (
    "".join(map(chr, range(0x80))),
    unicodedata.normalize(
        "NFC", "".join(map(chr, (*range(0x80, 0xC0), *range(0x80, 0x800, 0x3F))))
    ),
    "".join(chr(lead << 12 | (0x3F if lead else 0x83F)) for lead in range(16)),
    "".join(chr(plane << 16 | 0x123) for plane in range(1, 17)),
    "\n\n",
    "User: Hello  there",
    " Hi.",
    END_OF_TEXT,
)
