"""Turns text into token ids and back, by two libraries, and streams whole characters.

It knows nothing of messages or models. A token may hold half a character, so what is decoded
piecewise goes through bytes (`StreamDecoder`). Text that spells a special token, such as
``<|endoftext|>``, is encoded as ordinary text: only the template and the engine may speak of
special ids.
"""

from __future__ import annotations

import ast
import codecs
import functools
import hashlib
import json
import os
import threading
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyrwkv_tokenizer
import tokenizers

from langchain_rwkv_state.errors import ModelLoadError

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<|im_end|>")
_WORLD_NAMES = ("world", "rwkv_vocab_v20230424")  # the second is the `rwkv` package's
_WORLD_FILE = "rwkv_vocab_v20230424.txt"
_WORLD_IDS = 65_530
_WORLD_VOCAB = 65_536  # models pad the vocabulary to a power of two
_PILE_IDS, _PILE_VOCAB = 50_254, 50_432  # the 20B tokenizer: least size, and padded to 128
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


class WorldTokenizer:
    """The tokenizer of the RWKV World models: 65,529 texts, and id 0 for the end of text.

    The vocabulary is read at first use (a third of a second) and shared by the process. Models
    pad it to 65,536 ids; the few beyond `vocab_size` have no text.

    Args:
        path: A vocabulary of one's own in that format, such as one with added tokens: a line a
            token, ``id literal length``. ``None`` for the usual one.

    Raises:
        ModelLoadError: The file cannot be read, is of another format, or lacks a byte.

    Example:
        >>> world = WorldTokenizer()
        >>> world.encode("Hello world")
        [33155, 40213]
        >>> world.decode([33155, 40213])
        'Hello world'
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._own = None if self._path is None else _own_world(self._path)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return _WORLD_IDS if self._own is None else len(self._own.texts)

    @property
    def bos_id(self) -> int | None:
        """0, which the models read at the beginning of each text."""
        return 0

    @property
    def eos_ids(self) -> frozenset[int]:
        """0, which the models write at the end of each text."""
        return frozenset((0,))

    @property
    def identity(self) -> str:
        """Digest of the vocabulary file."""
        return self._world.identity

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text (longest match first); lone surrogates become U+FFFD."""
        return list(self._world.codec.encode(well_formed(text)))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the raw bytes of ids; 0 and ids beyond the vocabulary have none."""
        return _join(self._world.texts, ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, with U+FFFD for what is not UTF-8."""
        return self.decode_bytes(ids).decode(errors="replace")

    def __repr__(self) -> str:
        """Shows where it came from."""
        return f"WorldTokenizer({'' if self._path is None else repr(str(self._path))})"

    def __reduce__(self) -> tuple[type[WorldTokenizer], tuple[Path | None]]:
        """Is copied and pickled by its path."""
        return WorldTokenizer, (self._path,)

    @property
    def _world(self) -> _World:
        return _usual_world() if self._own is None else self._own


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
            raise _unreadable(self._path, error) from error
        self._identity = hashlib.sha256(content).hexdigest()[:_IDENTITY_DIGITS]
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
        return list(self._codec.encode(well_formed(text), add_special_tokens=False).ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the raw bytes of ids; special and unknown ones have none."""
        return _join(self._texts, ids)

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


def load_tokenizer(
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    *,
    model_path: str | os.PathLike[str] | None,
    vocab_size: int,
) -> Tokenizer:
    """Finds the tokenizer of a model.

    Args:
        tokenizer: A tokenizer; ``"world"``; the path of a ``tokenizer.json``, of its folder, or of
            a vocabulary in World's format; or ``None`` for the ``tokenizer.json`` beside the
            model's file or in its folder, else what its size tells. A `Path` is always a path; a
            text that is also a tokenizer's name is the name, so write ``./world`` for a file.
        model_path: The model's file or folder.
        vocab_size: Number of the model's logits.

    Raises:
        ModelLoadError: None is found, or it has ids that the model does not know.
    """
    found = _find(tokenizer, model_path, vocab_size)
    if found.vocab_size > vocab_size:
        raise ModelLoadError(
            f"The tokenizer has {found.vocab_size} ids, the model only {vocab_size}: pass the "
            "tokenizer that the model was trained with (tokenizer=...)."
        )
    return found


def _find(
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    model_path: str | os.PathLike[str] | None,
    vocab_size: int,
) -> Tokenizer:
    if isinstance(tokenizer, str) and tokenizer.lower() in _WORLD_NAMES:
        return WorldTokenizer()
    if isinstance(tokenizer, str | os.PathLike):
        return _at(Path(tokenizer).expanduser())
    if tokenizer is not None:
        return tokenizer
    if model_path is not None:
        beside = tokenizer_beside(model_path)
        if beside.is_file():
            return JsonTokenizer(beside)
    if _WORLD_IDS <= vocab_size <= _WORLD_VOCAB:
        return WorldTokenizer()
    if _PILE_IDS <= vocab_size <= _PILE_VOCAB:
        raise ModelLoadError(
            f"A model of {vocab_size} tokens needs the 20B tokenizer, and there is no "
            "tokenizer.json beside its file: pass tokenizer='path/to/20B_tokenizer.json'."
        )
    raise ModelLoadError(
        f"No tokenizer is known for a model of {vocab_size} tokens, and there is no "
        "tokenizer.json beside its file: pass tokenizer='path/to/tokenizer.json'."
    )


def tokenizer_beside(model_path: str | os.PathLike[str]) -> Path:
    """Returns where a model's ``tokenizer.json`` would be: in its folder, or beside its file."""
    path = Path(model_path)
    return path / "tokenizer.json" if path.is_dir() else path.with_name("tokenizer.json")


def _at(path: Path) -> Tokenizer:
    """Returns the tokenizer of a file or a folder; its content says which."""
    if path.is_dir():
        return JsonTokenizer(path / "tokenizer.json")
    try:
        with path.open("rb") as file:
            is_json = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"")
    except OSError:
        is_json = True  # which says what is wrong
    return JsonTokenizer(path) if is_json else WorldTokenizer(path)


class _World:
    """A vocabulary in World's format, once loaded.

    Raises:
        ModelLoadError: As for `WorldTokenizer`.
    """

    def __init__(self, file: Path, *, own: bool) -> None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise _unreadable(file, error) from error
        self.identity = hashlib.sha256(content).hexdigest()[:_IDENTITY_DIGITS]
        try:
            texts = dict(map(_world_entry, filter(str.strip, content.decode().split("\n"))))
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ModelLoadError(
                f"{str(file)!r} is neither a tokenizer.json nor a vocabulary in World's format, a "
                f"line `id literal length` for each token ({error}): pass another one, or "
                "tokenizer='world'."
            ) from error
        self.texts = [b""] * (1 + max(texts, default=0))
        for index, text in texts.items():
            self.texts[index] = text
        if own:
            self._check(file, texts)
        self.codec = pyrwkv_tokenizer.WorldTokenizer(str(file))

    def _check(self, file: Path, texts: dict[int, bytes]) -> None:
        """Refuses what would lose text, or mean two things."""
        known = set(texts.values())
        lacking = [byte for byte in range(256) if bytes([byte]) not in known]
        wrong = (
            f"it has a text for id {min(texts)}, where ids begin at 1: 0 ends a text"
            if min(texts, default=1) < 1
            else f"it lacks the byte {lacking[0]:#04x}, so that not every text can be read"
            if lacking
            else "it has one text under two ids"
            if len(known) < len(texts)
            else ""
        )
        if wrong:
            raise ModelLoadError(f"The vocabulary {str(file)!r} cannot be used: {wrong}.")


def _world_entry(line: str) -> tuple[int, bytes]:
    index, rest = line.split(" ", 1)
    literal, length = rest.rsplit(" ", 1)
    if "\\" not in literal and literal[0] in "'\"" and literal[-1] == literal[0]:
        text: object = literal[1:-1]
    else:
        text = ast.literal_eval(literal)
    found = text.encode() if isinstance(text, str) else text
    if not isinstance(found, bytes) or len(found) != int(length) or not found:
        raise ValueError(f"the line {line.strip()[:60]!r} is none")
    return int(index), found


_world_lock = threading.Lock()
_OWN_WORLDS_KEPT = 4


def _usual_world() -> _World:
    with _world_lock:
        return _load_usual_world()


def _own_world(path: Path) -> _World:
    """Returns a vocabulary as its file is now; every user of it shares one."""
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    with _world_lock:
        return _load_own_world(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.cache
def _load_usual_world() -> _World:
    return _World(Path(pyrwkv_tokenizer.__file__).with_name(_WORLD_FILE), own=False)


@functools.lru_cache(_OWN_WORLDS_KEPT)
def _load_own_world(path: Path, _: tuple[int, ...]) -> _World:
    return _World(path, own=True)


def _unreadable(path: Path, error: OSError) -> ModelLoadError:
    return ModelLoadError(
        f"The tokenizer {str(path)!r} cannot be read ({error.strerror or error}): pass "
        "tokenizer='world' or the path of a tokenizer.json."
    )


def _renew_lock() -> None:
    global _world_lock  # the parent may have held it when it forked
    _world_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _join(texts: list[bytes], ids: Iterable[int]) -> bytes:
    known = len(texts)
    pieces = []
    for index in ids:
        if index < 0:
            raise ValueError(f"Token ids are not negative, got {index}.")
        if index < known:
            pieces.append(texts[index])
    return b"".join(pieces)


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
