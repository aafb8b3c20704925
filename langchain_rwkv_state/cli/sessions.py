"""The commands that look after a store: ``sessions``, ``show``, ``rm`` and ``prune``.

They need no model, and start without PyTorch. The easy mistake is to open a store just to look
whether there is one: opening makes it, so a mistyped directory would come to be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.options import (
    JsonOption,
    StoreOption,
    is_store,
    open_store,
    store_name,
)
from langchain_rwkv_state.errors import RWKVStateError

if TYPE_CHECKING:
    from langchain_rwkv_state.store import LogEntry, SessionInfo, StateStore

_UNREAD_SHOWN_CHARS = 60


def sessions(
    store: StoreOption = None,
    prefix: Annotated[str, typer.Option(help="Only names that begin so.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the sessions of a store."""
    console = output.out()
    with existing_store(store) as opened:
        damaged: list[str] = []
        found = [] if opened is None else list(_infos(opened, prefix, damaged))
        if as_json:
            listed = [_as_json(info) for info in found]
            name = store_name(store)
            output.as_json({"store": name, "sessions": listed, "damaged": damaged})
            return
        if opened is None:
            return
        if not found:
            console.print(Text(f"No sessions in {store_name(store)}."), soft_wrap=True)
            return
        now = time.time()
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("SESSION", overflow="fold")
        table.add_column("MODEL", overflow="fold")
        for name in ("TURNS", "TOKENS", "BYTES"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("LAST USED", "EXPIRES"):
            table.add_column(name, no_wrap=True)
        for info in found:
            table.add_row(
                output.one_line(info.session),
                output.one_line(info.model or "-"),
                str(info.n_turns),
                str(info.n_tokens),
                output.size(info.nbytes),
                output.ago(info.updated_seconds, now),
                output.until(info.expires_seconds, now),
            )
        console.print(table)


def show(
    session: Annotated[str, typer.Argument(help="Its name.", autocompletion=complete_session)],
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show one session: its head, its log, its size and its time to live."""
    with existing_store(store) as opened:
        info = opened.session(session, renew=False) if opened else None
        if opened is None or info is None:
            raise unknown_session(session)
        log = opened.log(session)
        if as_json:
            unread = [json.loads(text) for text in info.unread]
            output.as_json(
                {**_as_json(info), "log": list(map(_turn, log)), "unread_messages": unread}
            )
            return
        console = output.out()
        console.print(_facts(info, time.time()), soft_wrap=True)
        if log:
            console.print()
            console.print(log_table(log))
        if info.unread:
            console.print()
            console.print("Unread messages, to be read with the next turn:")
            for text in info.unread:
                console.print(Text("  ") + output.one_line(_unread(text)), soft_wrap=True)


def rm(
    session: Annotated[
        list[str], typer.Argument(help="Names of sessions.", autocompletion=complete_session)
    ],
    store: StoreOption = None,
) -> None:
    """Delete sessions, with every state that nothing else needs.

    What can be deleted is; the exit code is 1 when one of them could not be.
    """
    failed = 0
    with existing_store(store) as opened:
        for name in session:
            try:
                deleted = opened is not None and opened.delete_session(name)
            except (RWKVStateError, ValueError) as problem:
                output.error(problem)
                failed += 1
                continue
            if deleted:
                output.out().print(Text("Deleted ") + output.one_line(name) + Text("."))
            else:
                unknown_session(name)
                failed += 1
    if failed:
        raise typer.Exit(1)


def prune(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Remove what has expired."""
    with existing_store(store) as opened:
        count = 0 if opened is None else opened.prune()
        if as_json:
            output.as_json({"store": store_name(store), "removed": count})
        elif opened is not None:
            what = "session or state" if count == 1 else "sessions and states"
            output.out().print(f"Removed {count} expired {what}.")


def log_table(log: list[LogEntry]) -> Table:
    """Returns a session's log as a table, newest first."""
    now = time.time()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("TURN", justify="right")
    table.add_column("STATE")
    table.add_column("TOKENS", justify="right")
    table.add_column("WHEN")
    table.add_column("KEPT")
    for back, entry in enumerate(log):
        table.add_row(
            "head" if back == 0 else f"-{back}",
            output.short(entry.ref),
            str(entry.n_tokens),
            output.ago(entry.created_seconds, now),
            "yes" if entry.kept else "no",
            style=None if entry.kept else "dim",
        )
    return table


def _infos(store: StateStore, prefix: str, damaged: list[str]) -> Iterator[SessionInfo]:
    """Yields the sessions; a damaged one is told of, named, and does not hide the others."""
    for name in store.sessions(prefix):
        try:
            info = store.session(name, renew=False)
        except RWKVStateError as problem:
            output.error(problem)
            damaged.append(name)
            continue
        if info is not None:
            yield info


def _as_json(info: SessionInfo) -> dict[str, Any]:
    """Returns a session for programs."""
    return {
        "session": info.session,
        "model": info.model,
        "fingerprint": info.fingerprint,
        "head": info.head,
        "turns": info.n_turns,
        "tokens": info.n_tokens,
        "bytes": info.nbytes,
        "unread": len(info.unread),
        "created": output.iso_time(info.created_seconds),
        "updated": output.iso_time(info.updated_seconds),
        "expires": output.iso_time(info.expires_seconds),
    }


def _turn(entry: LogEntry) -> dict[str, Any]:
    """Returns a turn of a session's log for programs."""
    return {
        "state": entry.ref,
        "parent": entry.parent,
        "tokens": entry.n_tokens,
        "created": output.iso_time(entry.created_seconds),
        "kept": entry.kept,
    }


def _facts(info: SessionInfo, now: float) -> Text:
    expires = output.until(info.expires_seconds, now)
    if expires != "never":
        expires += f" ({output.clock_time(info.expires_seconds)})"
    facts = (
        ("session", output.one_line(info.session)),
        ("model", output.one_line(info.model or "none that can be read")),
        (
            "head",
            info.head or f"none: {'only unread messages' if info.unread else 'no turn'} so far",
        ),
        ("turns", str(info.n_turns)),
        ("tokens", f"{info.n_tokens}, which the state stands for"),
        ("bytes", f"{info.nbytes:,} ({output.size(info.nbytes)}) for all states kept"),
        ("first turn", output.clock_time(info.created_seconds)),
        ("last turn", output.clock_time(info.updated_seconds)),
        ("expires", expires),
        ("unread", str(len(info.unread))),
    )
    lines = (Text.assemble((f"{name:<12}", "bold"), value) for name, value in facts)
    return Text("\n").join(lines)


def _unread(text: str) -> str:
    from langchain_rwkv_state.prompt.markers import message_from_json

    message = message_from_json(text)
    said = str(message.text)
    more = "\u2026" if len(said) > _UNREAD_SHOWN_CHARS else ""
    return f"{message.type}: {said[:_UNREAD_SHOWN_CHARS]}{more}"


def unknown_session(session: str) -> typer.Exit:
    """Says that there is no such session; returns what to raise."""
    output.error(f"There is no session {session!r}: `rwkv-state sessions` lists those there are.")
    return typer.Exit(1)


@contextmanager
def existing_store(place: str | None, *, history: int | None = None) -> Iterator[StateStore | None]:
    """Opens a store and closes it at the end; gives ``None``, with a note, where there is none."""
    if not is_store(place):
        output.note(f"There is no store at {store_name(place)} yet.")
        yield None
        return
    opened = open_store(place, history=history)
    try:
        yield opened
    finally:
        opened.close()
