"""Runs a process at a pseudo-terminal: waits for what it shows, and types."""

from __future__ import annotations

import codecs
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

import pytest

from tests.helpers.command import PATIENCE_SECONDS, RWKV_STATE


class Terminal:
    """A process at a pseudo-terminal of its own, the command line unless told otherwise."""

    def __init__(self, *words: str, program: Sequence[str] = RWKV_STATE) -> None:
        pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            # A shell's background jobs ignore Ctrl-C, and so would what the tests start there.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, [*program, *words])
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.seen = ""
        self._at = 0

    def until(self, *texts: str, within_seconds: float = PATIENCE_SECONDS) -> None:
        """Reads until one of the texts shows up behind what was waited for last."""
        deadline = time.monotonic() + within_seconds
        while not (ends := [at + len(t) for t in texts if (at := self._find(t)) >= 0]):
            assert time.monotonic() < deadline, f"no {texts!r} in {self.seen[-2_000:]!r}"
            ready, _, _ = select.select([self._end], [], [], 1)
            if not ready:
                continue
            try:
                data = os.read(self._end, 4096)
            except OSError:
                data = b""
            assert data, f"the process ended; it wrote {self.seen[-2_000:]!r}"
            self.seen += self._decoder.decode(data)
        self._at = min(ends)

    def _find(self, text: str) -> int:
        return self.seen.find(text, self._at)

    def type(self, text: str) -> None:
        """Types a text; ``\\x03`` is Ctrl-C, ``\\x04`` is Ctrl-D."""
        os.write(self._end, text.encode())

    def wait(self) -> int:
        """Returns the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Hangs up."""
        os.close(self._end)
