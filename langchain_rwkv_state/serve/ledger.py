"""Counts what each tenant uses, also where several processes serve it: a limit is one for all.

Each process writes cells of its own and reads everybody's, so there is no lock that a killed one
could leave held. A process that died leaves what it spent, and its requests no longer run: whoever
looks after the processes says so by `SharedLedger.forget`.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Protocol

_ROWS = 4096  # tenants; there is room for so many names in all, over all readings of the keys
_NAME_BYTES = 16
_CELL_BYTES = 8


class Uses(Protocol):
    """What one tenant uses; ``add`` is this process's, ``total`` of all processes."""

    def add(self, *, requests: int = 0, tokens: int = 0) -> None:
        """Adds to what runs, or to what was spent since the start."""

    def requests(self) -> int:
        """Returns how many requests run."""

    def tokens(self) -> int:
        """Returns how many tokens were spent since the start."""


class Ledger(Protocol):
    """Counts by tenant."""

    def of(self, name: str) -> Uses:
        """Returns the counts of a tenant."""


class OwnUses:
    """What a tenant uses of one process."""

    def __init__(self) -> None:
        self._requests = self._tokens = 0

    def add(self, *, requests: int = 0, tokens: int = 0) -> None:
        """See `Uses.add`."""
        self._requests += requests
        self._tokens += tokens

    def requests(self) -> int:
        """See `Uses.requests`."""
        return self._requests

    def tokens(self) -> int:
        """See `Uses.tokens`."""
        return self._tokens


class OwnLedger:
    """Counts for one process."""

    def of(self, name: str) -> OwnUses:  # noqa: ARG002 # whoever asks keeps it
        """See `Ledger.of`."""
        return OwnUses()


class SharedLedger:
    """Counts for processes that are forked from the one that makes it.

    Args:
        processes: How many there are at once.
        process: Which of them this one is; see `at`.
    """

    def __init__(self, processes: int, process: int = 0) -> None:
        self._processes = processes
        self._process = process
        self._row_bytes = _NAME_BYTES + processes * 2 * _CELL_BYTES
        self._bytes = mmap.mmap(-1, _ROWS * self._row_bytes)
        # It has a lock of the system's, which ends with the process that holds it.
        self._gate = tempfile.TemporaryFile()  # noqa: SIM115 # as long as this object

    def at(self, process: int) -> SharedLedger:
        """Makes this the ledger of one process, in that process; returns it."""
        self._process = process
        return self

    def of(self, name: str) -> SharedUses:
        """See `Ledger.of`."""
        key = blake2b(name.encode(), digest_size=_NAME_BYTES).digest()
        with self._alone():
            row = int.from_bytes(key[:4], "little") % _ROWS
            for _ in range(_ROWS):
                start = row * self._row_bytes
                found = self._bytes[start : start + _NAME_BYTES]
                if not any(found):
                    self._bytes[start : start + _NAME_BYTES] = key
                    found = key
                if found == key:
                    break
                row = (row + 1) % _ROWS
            else:
                raise RuntimeError(f"There is no room for more than {_ROWS} tenants.")
        begin = start + _NAME_BYTES
        cells = memoryview(self._bytes)[begin : start + self._row_bytes].cast("q")
        return SharedUses(cells, self._process)

    def forget(self, process: int) -> None:
        """Takes note that a process ended: nothing runs in it."""
        cells = memoryview(self._bytes)
        for row in range(_ROWS):
            begin = row * self._row_bytes + _NAME_BYTES + process * 2 * _CELL_BYTES
            cells[begin : begin + _CELL_BYTES] = bytes(_CELL_BYTES)

    def close(self) -> None:
        """Lets go of it; counts that somebody still holds go on."""
        self._gate.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        import fcntl  # there is none on Windows, nor are there workers

        fcntl.lockf(self._gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._gate, fcntl.LOCK_UN)


class SharedUses:
    """What a tenant uses of several processes.

    Args:
        cells: Two a process: requests that run, and tokens that were spent.
        process: Which one this is.
    """

    def __init__(self, cells: memoryview[int], process: int) -> None:
        self._cells = cells
        self._requests, self._tokens = 2 * process, 2 * process + 1

    def add(self, *, requests: int = 0, tokens: int = 0) -> None:
        """See `Uses.add`."""
        self._cells[self._requests] += requests
        self._cells[self._tokens] += tokens

    def requests(self) -> int:
        """See `Uses.requests`."""
        return sum(self._cells[::2])

    def tokens(self) -> int:
        """See `Uses.tokens`."""
        return sum(self._cells[1::2])
