"""The World vocabulary: reads it, and turns text into its ids and back by pyrwkv-tokenizer."""

from __future__ import annotations

import ast
import functools
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pyrwkv_tokenizer

from langchain_rwkv_state._fork import in_forked_child
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.tokenizer._port import identity_of, joined, unreadable, well_formed

WORLD_IDS = 65_530
_WORLD_FILE = "rwkv_vocab_v20230424.txt"


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
        return WORLD_IDS if self._own is None else len(self._own.texts)

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
        return joined(self._world.texts, ids)

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


class _World:
    """A vocabulary in World's format, once loaded.

    Raises:
        ModelLoadError: As for `WorldTokenizer`.
    """

    def __init__(self, file: Path, *, own: bool) -> None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from error
        self.identity = identity_of(content)
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
        raise unreadable(path, error) from error
    with _world_lock:
        return _load_own_world(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.cache
def _load_usual_world() -> _World:
    return _World(Path(pyrwkv_tokenizer.__file__).with_name(_WORLD_FILE), own=False)


@functools.lru_cache(_OWN_WORLDS_KEPT)
def _load_own_world(path: Path, _: tuple[int, ...]) -> _World:
    return _World(path, own=True)


def _renew_lock() -> None:
    global _world_lock  # the parent may have held it when it forked
    _world_lock = threading.Lock()


in_forked_child(_renew_lock)
