"""Progress bars for long work: on a terminal, on standard error, gone when all is done.

They count answers through LangChain's callbacks, or whatever steps they are told of, and know
nothing of models. At most one is drawn at a time, whatever the threads. The easy mistake is to draw
where nobody looks: in a log a bar is noise, so off a terminal (and a notebook) there is none; nor
is there for work that is over before one could read it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from langchain_core.callbacks import BaseCallbackHandler

from langchain_rwkv_state._text import in_one_line

if TYPE_CHECKING:  # a twentieth of a second, which an answer that draws no bar need not wait
    from rich.console import Console
    from rich.progress import Progress

logger = logging.getLogger(__name__)

_WATCHED_SECONDS = 0.5  # of work, before it can be said how long it will take
_WORTH_SECONDS = 1.0  # of work to come: less is not worth a bar

_drawing = threading.Lock()  # two bars at once would be drawn over each other


class LateBar:
    """A bar for work that may turn out long: drawn once a second or more of it lies ahead.

    Args:
        label: What is done.
        progress: The setting: ``False`` for none, ever.
        in_bytes: Whether the steps are bytes.
        console: Where to draw; ``None`` for standard error, if that is a terminal.

    Attributes:
        tell: To be called with (steps done, steps in all), from any thread; ``None`` where no bar
            will be drawn. It raises nothing.

    Example:
        >>> with LateBar("loading") as bar:
        ...     for done in range(3):
        ...         if bar.tell is not None:
        ...             bar.tell(done + 1, 3)
    """

    def __init__(
        self,
        label: str,
        *,
        progress: bool | None = None,
        in_bytes: bool = False,
        console: Console | None = None,
    ) -> None:
        self._label = label
        self._in_bytes = in_bytes
        self._console = console
        self._lock = threading.Lock()
        self._over = False
        self._begun: tuple[float, int] | None = None
        self._drawn = contextlib.ExitStack()
        self._advance: Callable[[int, int], None] | None = None
        wanted = progress is not False and (console is not None or _is_watched())
        self.tell = self._tell if wanted else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        with self._lock:
            self._over = True
            self._drawn.close()

    def _tell(self, done: int, total: int) -> None:
        with self._lock:
            if self._over:
                return
            try:
                if self._advance is None and self._is_long(done, total):
                    told = stepping(self._label, self._console, in_bytes=self._in_bytes)
                    self._advance = self._drawn.enter_context(told)
                if self._advance is not None:
                    self._advance(done, total)
            except Exception:  # the work does not fail for its bar
                self._over = True
                logger.debug("The progress bar of %s failed", self._label, exc_info=True)

    def _is_long(self, done: int, total: int) -> bool:
        """Says whether enough is left to do, at the pace since the first step."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, done)
        since, first = self._begun
        passed = now - since
        return passed >= _WATCHED_SECONDS and passed * (total - done) >= _WORTH_SECONDS * max(
            done - first, 1
        )


@contextlib.contextmanager
def counting(total: int, console: Console | None = None) -> Iterator[list[BaseCallbackHandler]]:
    """Draws a bar while the body runs.

    Args:
        total: Number of answers.
        console: Where to draw; ``None`` for standard error.

    Yields:
        Callbacks for the calls to count; none where there is no terminal.
    """
    with _bar(console) as bar:
        if bar is None:
            yield []
            return
        counter = _Counter(bar, total)
        yield [counter]
        counter.finish()


@contextlib.contextmanager
def stepping(
    label: str, console: Console | None = None, *, in_bytes: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Draws a bar while the body runs.

    Args:
        label: What is done.
        console: Where to draw; ``None`` for standard error.
        in_bytes: Whether the steps are bytes.

    Yields:
        A function to be called with (steps done, steps in all), from any thread.
    """
    with _bar(console, in_bytes=in_bytes) as bar:
        if bar is None:
            yield lambda _done, _total: None
            return
        task = bar.add_task(in_one_line(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Counter(BaseCallbackHandler):
    """Advances a bar at the end of each answer, and at each that failed."""

    run_inline = True

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._total = total
        self._task = bar.add_task("answers", total=total)

    def on_llm_end(self, *_: object, **__: object) -> None:
        self._bar.advance(self._task)

    def on_llm_error(self, *_: object, **__: object) -> None:
        self._bar.advance(self._task)

    def finish(self) -> None:
        """Fills the bar: an input that is refused before any callback is none to wait for."""
        self._bar.update(self._task, completed=self._total)


@contextlib.contextmanager
def _bar(console: Console | None, *, in_bytes: bool = False) -> Iterator[Progress | None]:
    """Shows a bar without tasks; gives ``None`` where none can be seen, or another one stands."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    shown = console or (Console(stderr=True) if _is_watched() else None)
    if shown is None or not (shown.is_terminal or shown.is_jupyter):
        yield None
        return
    if not _drawing.acquire(blocking=False):
        yield None
        return
    try:
        with Progress(
            TextColumn("{task.description}", markup=False),  # a file's name is no markup
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=shown,
            transient=True,
            # What the program prints is its own: in a file it stays, whoever looks at the bar.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        ) as bar:
            yield bar
    finally:
        _drawing.release()


def _is_watched() -> bool:
    """Says whether somebody sees standard error as it is written: a terminal, or a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
