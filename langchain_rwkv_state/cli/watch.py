"""The command ``watch``: shows a session's state while somebody else talks in it.

In a terminal one view is drawn over and over; through a pipe each new head is one line. Only the
last state is kept, to measure the next against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.options import StoreOption, is_store, open_store, store_name
from langchain_rwkv_state.cli.sessions import unknown_session
from langchain_rwkv_state.cli.states import HealthyOption, read_healthy

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Healthy, RWKVState
    from langchain_rwkv_state.store.events import SessionEvent
    from langchain_rwkv_state.views.terminal.live_view import Frame

_FRAMES_KEPT = 64
_SAID = {
    "absent": "There is no such session yet: waiting for its first turn.",
    "deleted": "The session was deleted: waiting for one of its name.",
    "expired": "The session has expired: waiting for one of its name.",
}


def watch(
    session: Annotated[
        str,
        typer.Argument(help="Its name; it need not be there yet.", autocompletion=complete_session),
    ],
    every: Annotated[
        float, typer.Option(min=0.01, max=86_400, help="Seconds between two looks at the store.")
    ] = 0.5,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands, and end.")] = False,
    turns: Annotated[
        int | None, typer.Option(min=1, help="End after so many new heads; else Ctrl-C ends.")
    ] = None,
    healthy: HealthyOption = None,
    store: StoreOption = None,
) -> None:
    """Watch how a session's state moves while its conversation goes on.

    Watching is no use of the session: it is trimmed and expires as if nobody looked.
    """
    from langchain_rwkv_state.store.events import watch

    ranges = read_healthy(healthy)
    console = output.out()
    try:
        _wait_for_store(store, every, once=once, session=session)
        opened = open_store(store)
        try:
            events = watch(opened, session, every_seconds=every)
            _Watching(session, console, ranges).run(events, once=once, turns=turns)
        finally:
            opened.close()
    except KeyboardInterrupt:
        return  # the way to end it


def _wait_for_store(place: str | None, every: float, *, once: bool, session: str) -> None:
    """Waits until there is a store, since opening it would make one."""
    if is_store(place):
        return
    output.note(f"There is no store at {store_name(place)} yet.")
    if once:
        raise unknown_session(session)
    while not is_store(place):
        time.sleep(every)


@dataclass
class _Watching:
    """One run of the command: what was seen, and how it is shown."""

    session: str
    console: Console
    healthy: Healthy | None
    frames: list[Frame] = field(default_factory=list)
    _last: RWKVState | None = None
    _show: Callable[[Any], None] = field(default=lambda _: None)

    def run(self, events: Iterator[SessionEvent], *, once: bool, turns: int | None) -> None:
        """Shows what is seen, to the end that was asked for.

        Raises:
            typer.Exit: There is no session to show once.
        """
        left = turns
        with self._live(once):
            for event in events:
                if once and event.kind == "absent":
                    raise unknown_session(self.session)
                self._take(event)
                if event.kind == "head" and not event.first and left is not None:
                    left -= 1
                if once or left == 0:
                    return

    def _live(self, once: bool) -> AbstractContextManager[object]:
        """Makes a view that is drawn over and over, where there is a terminal for it."""
        from rich.live import Live

        if not self.console.is_terminal:
            return nullcontext()
        if once:
            self._show = self.console.print
            return nullcontext()
        live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
        self._show = lambda view: live.update(view, refresh=True)
        return live

    def _take(self, event: SessionEvent) -> None:
        from langchain_rwkv_state.views.terminal.live_view import frame_line, watch_view

        note = _SAID.get(event.kind, "")
        if event.kind == "head":
            note = self._frame(event)
        else:
            self._last = None
            if event.kind != "absent":
                self.frames.clear()
        if not self.console.is_terminal:
            said = note or frame_line(self.frames[-1])
            self.console.print(Text(said), soft_wrap=True)
            return
        width, height = self.console.size
        self._show(
            watch_view(
                self.session,
                self.frames,
                note=note,
                now_seconds=time.time(),
                columns=width,
                rows=height,
            )
        )

    def _frame(self, event: SessionEvent) -> str:
        """Adds a head to what was seen; returns what is to be said where there is none."""
        from langchain_rwkv_state.state import inspect, motion
        from langchain_rwkv_state.views.terminal.live_view import Frame

        info, state = event.info, event.state
        if info is None or info.head is None:
            self._last = None
            self.frames.clear()
            return "The session has no state yet: waiting for its first turn."
        before = event.before or self._last
        seen = None
        if state is not None:
            seen = motion(state, before, inspect(state, healthy=self.healthy))
        frame = Frame(info.n_turns, info.n_tokens, info.updated_seconds, info.expires_seconds, seen)
        self.frames = [*self.frames, frame][-_FRAMES_KEPT:]
        self._last = state
        return ""
