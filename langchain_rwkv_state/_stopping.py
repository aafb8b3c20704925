"""Ends a command at Ctrl-C: one line on standard error and exit code 130, whenever it comes.

It knows signals and nothing of commands. Python raises wherever the signal arrives: in an import
the exception is swallowed, becomes another one, or ends in a traceback before anybody is there to
catch it. So the process ends on the spot until a command is at work, and as long as it imports
something; a command itself is interrupted, so that it can take back what it began. What this module
imports is not heard over, so it is little.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType
    from typing import Any, NoReturn
else:
    import _signal as signal  # what `signal` is made of; that one takes 10 ms to import, unheard

EXIT_CODE = 130
"""What a shell says of a program that Ctrl-C ended."""


def listen() -> None:
    """Lets Ctrl-C end this process at once, unless it was started to ignore it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _at_once)
    # Registered first and so run last: then all is done, and only the interpreter goes down.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Raised where nothing can be (in a destructor, say), the key would be lost.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            end()
        shown(unraisable)

    sys.unraisablehook = hook


class InOrder:
    """Lets Ctrl-C raise `KeyboardInterrupt` in a context, once; a second one ends the process.

    Without `listen` nothing changes.
    """

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is _at_once:
            signal.signal(signal.SIGINT, _raised)

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) is _raised:
            signal.signal(signal.SIGINT, _at_once)


def say() -> None:
    """Says on standard error that a command was stopped; a terminal gets its cursor back."""
    line = b"Stopped.\n"
    try:  # noqa: SIM105 # contextlib would be another import
        os.write(2, b"\x1b[?25h\n" + line if os.isatty(2) else line)
    except OSError:
        pass  # nobody is there to read it


def end() -> NoReturn:
    """Ends the process on the spot."""
    say()
    os._exit(EXIT_CODE)


def _at_once(_: int, __: FrameType | None) -> None:
    end()


def _raised(_: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        end()
    signal.signal(signal.SIGINT, _at_once)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
