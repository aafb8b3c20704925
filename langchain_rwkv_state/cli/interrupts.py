"""Hears Ctrl-C in a conversation at a terminal: a key that is never lost.

Python loses one in two places. A signal that arrives as a prompt is drawn is noted, and then
`input` waits for a key without looking (readline's select, or fgets: whatever reads the terminal);
and `input` flushes the standard streams first and drops what is raised there. So a signal is
recorded by a handler of our own, which raises only where somebody is ready for it, and while a
prompt waits a timer interrupts the wait some times a second so that the record is looked at. It
never raises wherever the signal happens to arrive: between two turns that would end the program,
and in the middle of rich's printing nothing would be printed ever after.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_TICK_SECONDS = 0.1  # how late a Ctrl-C may be heard that arrives as a prompt is drawn


class Interrupts:
    """The record of Ctrl-C, and the two places where it has an effect: `read` and `during`.

    Outside of `listening` (through a pipe, on another thread, without POSIX timers) both do no more
    than Python does.
    """

    def __init__(self) -> None:
        self._rung = False
        self._reading = False
        self._acting = False
        self._ticks = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears every SIGINT of the process, to the end of the context."""
        possible = threading.current_thread() is threading.main_thread()
        if not possible or not hasattr(signal, "setitimer"):
            yield
            return
        before = {
            number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGALRM)
        }
        self._ticks = True
        try:
            yield
        finally:
            self._ticks = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def read(self, prompt: str) -> str:
        """Returns the line that is typed at a prompt.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed at the prompt, or since the last one was heard.
            EOFError: The input is over.
        """
        try:
            self._reading = True
            self._check()
            if self._ticks:
                signal.setitimer(signal.ITIMER_REAL, _TICK_SECONDS, _TICK_SECONDS)
            return input(prompt)
        except KeyboardInterrupt:
            self._reading = self._rung = False  # nothing is called before: no handler can run
            raise
        except SystemError:
            # `input` runs the handlers once more while a KeyboardInterrupt is on its way, which
            # Python takes for a fault of theirs.
            self._reading = False
            if not self._rung:
                raise
            self._rung = False
            raise KeyboardInterrupt from None
        finally:
            self._reading = False
            if self._ticks:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def during(self, act: Callable[[], T]) -> T:
        """Returns what an action returns, unless Ctrl-C ends it first.

        It is interrupted once; what it does then to end in order is not interrupted again.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed meanwhile, or since the last one was heard.
        """
        try:
            self._acting = True
            self._check()
            return act()
        except KeyboardInterrupt:
            self._acting = self._rung = False
            raise
        finally:
            self._acting = False

    def _check(self) -> None:
        if self._rung:
            raise KeyboardInterrupt

    def _heard(self, number: int, _: Any) -> None:
        """Handles Ctrl-C, and the tick of the timer, which raises again what was swallowed."""
        if number == signal.SIGINT:
            self._rung = True
        if self._rung and self._reading:
            raise KeyboardInterrupt
        if self._rung and self._acting:
            self._acting = False
            raise KeyboardInterrupt
