"""A progress bar for long work: on a terminal, on standard error, gone when all is done.

It counts answers through LangChain's callbacks, or whatever steps it is told of, and knows nothing
of models. The easy mistake is to
draw where nobody looks: in a log, a bar is noise, so off a terminal there is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class _Counter(BaseCallbackHandler):
    """Advances a bar at the end of each answer, and at each that failed."""

    run_inline = True

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._total = total
        self._task = bar.add_task("answers", total=total)

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self._bar.advance(self._task)

    def on_llm_error(self, *_: Any, **__: Any) -> None:
        self._bar.advance(self._task)

    def finish(self) -> None:
        """Fills the bar: an input that is refused before any callback is none to wait for."""
        self._bar.update(self._task, completed=self._total)


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
def stepping(label: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Draws a bar while the body runs.

    Args:
        label: What is done.
        console: Where to draw; ``None`` for standard error.

    Yields:
        A function to be called with (steps done, steps in all), from any thread.
    """
    with _bar(console) as bar:
        if bar is None:
            yield lambda _done, _total: None
            return
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _bar(console: Console | None) -> Iterator[Progress | None]:
    """Shows a bar without tasks; gives ``None`` where there is no terminal."""
    shown = console or Console(stderr=True)
    if not shown.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=shown, transient=True) as bar:
        yield bar
