r"""Reads and writes the standard streams, whatever their encoding: no text ends a command.

Where output is not UTF-8 (a Windows pipe under cp1252, a log under C), signs that it lacks become
simpler ones, and letters that it lacks their number, \u65e5. The easy mistake is to take a byte
order mark, which PowerShell and Notepad write, for text: it says how the rest is encoded.

A process may be started without a stream (`>&-`, a service). Then nothing is read, what is printed
goes nowhere, as Python's `print` has it, and the stream's number is taken: the next file that is
opened would get it, and with it what is written to that stream.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path
from typing import BinaryIO, Literal, TextIO

_ERRORS = "rwkv-state.simpler"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SIMPLER = {
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2013\u2014\u2500\u2501\u2550\u2574\u2576", "-"),
    **dict.fromkeys("\u2502\u2503\u2551", "|"),
    **dict.fromkeys("\u250c\u2510\u2514\u2518\u251c\u2524\u252c\u2534\u253c", "+"),
    **dict.fromkeys("\u256d\u256e\u2570\u256f", "+"),
    **dict.fromkeys("\u258f\u258e\u258d\u258c", "-"),  # less than half a cell of a bar, and more
    **dict.fromkeys("\u258b\u258a\u2589", "="),
    **dict(zip("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "_.-=+*%#", strict=True)),
    "\u2713": "+",
    "\u2717": "x",
    "\u2192": "->",
    "\u2026": "...",
    "\u203a": ">",
    "\u00b7": ".",
    "\ufffd": "?",
}


def prepare_streams() -> None:
    """Lets the process's standard streams take every text; for `main`, once."""
    if sys.stdin is None:
        sys.stdin = _nowhere("r")
    if sys.stdout is None:
        sys.stdout = _nowhere("w")
    if sys.stderr is None:
        sys.stderr = _nowhere("w")
    codecs.register_error(_ERRORS, _simpler)
    for stream, errors in ((sys.stdout, _ERRORS), (sys.stderr, _ERRORS), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    return Path(os.devnull).open(mode, encoding="utf-8")


def is_piped() -> bool:
    """Says whether there is a standard input that is no terminal, so that a text may be in it."""
    return sys.stdin is not None and not sys.stdin.isatty()


def piped_text() -> TextIO:
    """Returns standard input as text, without a byte order mark and in the encoding it tells."""
    stream = sys.stdin
    raw = getattr(stream, "buffer", None)
    if raw is None:
        return stream
    begun = _begun(raw)
    found = next(((mark, name) for mark, name in _MARKS if begun == mark), None)
    encoding = found[1] if found else stream.encoding
    left = io.BufferedReader(_Behind(b"" if found else begun, raw))
    return io.TextIOWrapper(left, encoding=encoding, errors="replace")


def read_text(file: Path) -> str:
    """Returns what a text file holds, without a byte order mark.

    Raises:
        ValueError: It is no text in UTF-8, nor in what its mark says.
    """
    content = file.read_bytes()
    mark, encoding = next((each for each in _MARKS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        return io.StringIO(content.removeprefix(mark).decode(encoding), newline=None).read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no text in {encoding.upper()} (byte {error.start} is "
            f"{error.object[error.start]:#04x}): convert it first."
        ) from error


def _begun(raw: BinaryIO) -> bytes:
    """Returns the first bytes, no more than it takes to tell a mark: more may be long in coming."""
    begun = raw.read(1)
    while any(mark.startswith(begun) and mark != begun for mark, _ in _MARKS) and begun:
        byte = raw.read(1)
        if not byte:
            break
        begun += byte
    return begun


class _Behind(io.RawIOBase):
    """Bytes that were read already, and then the rest of a stream as it comes."""

    def __init__(self, begun: bytes, rest: BinaryIO) -> None:
        self._begun, self._rest = begun, rest

    def readable(self) -> bool:
        """Says that it can be read."""
        return True

    def readinto(self, space: bytearray | memoryview) -> int:  # type: ignore[override]
        """Reads what is there, waiting only where nothing is."""
        if self._begun:
            found, self._begun = self._begun[: len(space)], self._begun[len(space) :]
        else:
            found = self._rest.read1(len(space))  # type: ignore[attr-defined]
        space[: len(found)] = found
        return len(found)


def _simpler(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handles what an encoding lacks, as an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(each) or _number(each) for each in lacking), error.end


def _number(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
