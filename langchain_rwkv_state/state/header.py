"""Reads what a state's file says of itself at its start, without its numbers.

It parses and checks form alone, and needs no PyTorch, so that who lists sessions does not wait for
it. Nothing here has looked at the checksum; `codec.decode` does.
"""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, NamedTuple

from langchain_rwkv_state.errors import StateCorrupt

HEADER_LIMIT_BYTES = 1 << 20  # a header of the largest known model takes 2 kB
FILE_LIMIT_BYTES = 4 << 30  # a state of the largest known model takes 80 MB
START_BYTES = 1 << 13  # of a file, that hold the header: its layers are joined, so it is short
_VERSION_DIGITS = 9  # a later version, however long its number: `int` refuses thousands of digits


def is_later(version: str, known: int) -> bool:
    """Says whether the text of a format's version is that of a later one than is known."""
    if not (version.isascii() and version.isdecimal()):
        return False
    return len(version) > _VERSION_DIGITS or int(version) > known


def parsed_header(text: bytes) -> dict[str, Any]:
    """Reads a header: an object that holds an object of texts, of which one is the format."""
    try:
        parsed: dict[str, Any] = json.loads(text)
        texts = parsed["__metadata__"]
        for key, value in texts.items():
            for each in (key, value):  # half a surrogate pair is no text, and numbers are none
                each.encode()
        str(texts["format"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StateCorrupt("The file is not a state: its header is not readable.") from error
    return parsed


def read_state_file(file: BinaryIO) -> bytes:
    """Returns what a file holds, unless it is longer than a state's header says: for `decode`.

    A file that grew, by 40 GB of nothing for instance, is refused before it is read.

    Args:
        file: A regular file, open at its start.

    Raises:
        StateCorrupt: The file is longer than a state may be, or than this one is.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8 + HEADER_LIMIT_BYTES)
    if size <= len(start):
        return start
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT_BYTES:
        raise StateCorrupt("The file is not a state: its header would be too large.")
    try:
        tensors = {
            k: v for k, v in parsed_header(start[8 : 8 + length]).items() if k != "__metadata__"
        }
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        whole = 8 + length + end
    except (TypeError, LookupError, ValueError) as error:
        raise StateCorrupt("The file is not a state: its header is not readable.") from error
    if size > min(whole, FILE_LIMIT_BYTES):
        raise StateCorrupt(
            f"The file has {size} bytes, more than its header tells or than a state can have: it "
            "was changed."
        )
    return start + file.read(size - len(start))


class Named(NamedTuple):
    """The model that a state's file names at its start.

    Attributes:
        fingerprint: Its fingerprint.
        version: Of RWKV.
        n_layer: Number of layers.
        n_embd: Embedding width.
    """

    fingerprint: str
    version: int
    n_layer: int
    n_embd: int


def model_named(start: bytes) -> Named:
    """Returns the model that a state's file says it is of, unchecked: for people to read.

    Args:
        start: The file's first bytes, `START_BYTES` of them or all.

    Raises:
        StateCorrupt: It says nothing that could be a model.
    """
    length = int.from_bytes(start[:8], "little")
    if length > len(start) - 8:
        raise StateCorrupt("The file is not a state: its header is cut off, or too large.")
    texts = parsed_header(start[8 : 8 + length])["__metadata__"]
    try:
        fingerprint = json.loads(texts["about"])["fingerprint"]
        layout = json.loads(texts["layout"])
        numbers = [layout[name] for name in ("version", "n_layer", "n_embd")]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StateCorrupt("The header of the file names no model.") from error
    if not isinstance(fingerprint, str) or not all(type(each) is int for each in numbers):
        raise StateCorrupt("The header of the file names no model.")
    return Named(fingerprint, *numbers)
