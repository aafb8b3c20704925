"""What a turn means in a transaction: who may begin it, where the head goes, what is kept of it.

A turn takes a place in its session's queue, with a number and a time until which it holds; it may
begin when no place that still holds stands before its own. The queue says nothing of heads: a
commit is still a compare-and-swap. The easy mistakes: to let go of a state before the new holder
has it, for a state goes with its last holder; and to believe in a place for good, for whoever was
stopped for longer than its lease finds another turn begun, and its own place gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from langchain_rwkv_state.errors import SessionConflict, StateNotFound
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.records import LogEntry, Origin, QueuedTurn
from langchain_rwkv_state.store.rows import Holder, QueueRow, SessionRow
from langchain_rwkv_state.store.tables import LOG_ENTRIES, Changes, Tables


class Heads:
    """Moves heads as a store's settings say.

    Args:
        ttl: The store's time to live, in seconds.
        sliding: Whether new sessions slide.
        history: How many states before a head are kept.
    """

    def __init__(self, ttl: float, sliding: bool, history: int) -> None:
        self._ttl = ttl
        self._sliding = sliding
        self._history = history

    def living(self, changes: Changes, session: str) -> tuple[SessionRow, SessionRow | None]:
        """Returns a living session, or a new one; and the row that is stored."""
        row = changes.session(session)
        if row is not None:
            return row, row
        changes.remove_session(session, expired=True)
        fresh = SessionRow(
            name=session,
            head=None,
            n_tokens=0,
            turns=0,
            created=changes.now,
            updated=changes.now,
            expires=changes.now + self._ttl,
            ttl=self._ttl,
            sliding=self._sliding,
        )
        return fresh, None

    def renewed(self, row: SessionRow, now: float, ttl: TTL, sliding: bool | None) -> SessionRow:
        """Returns a session whose time to live starts anew where it should."""
        if sliding is not None:
            row = replace(row, sliding=sliding)
        if ttl is not None:
            row = replace(row, ttl=ttl_seconds(ttl, self._ttl))
        if ttl is not None or row.sliding:
            row = replace(row, expires=now + row.ttl)
        return row

    def moved(
        self,
        changes: Changes,
        row: SessionRow,
        ref: str,
        origin: Origin | None,
        said: tuple[str, ...] = (),
    ) -> SessionRow:
        """Moves a head forward, and lets go of the states that leave the history."""
        state = changes.state_to_hold(ref)
        wanted = (ref, *(old for old in row.kept if old != ref))
        kept, dropped = wanted[: self._history + 1], wanted[self._history + 1 :]
        changes.hold(ref, Holder.SESSION, row.name)
        for old in dropped:
            changes.let_go(old, Holder.SESSION, row.name)
        turn = LogEntry(
            ref,
            row.head,
            state.n_tokens,
            changes.now,
            said=said,
            origin=origin,
            seq=row.turns + 1,
        )
        changes.add_turn(row.name, turn)
        return replace(row, head=ref, n_tokens=state.n_tokens, turns=turn.seq, kept=kept)

    def back_to(self, changes: Changes, row: SessionRow, turn: LogEntry | None) -> SessionRow:
        """Moves a head to a turn of its own log, with the history that is still stored."""
        kept: tuple[str, ...] = ()
        if turn is not None:
            older = [old for old in changes.log(row.name) if old.seq < turn.seq]
            refs = dict.fromkeys(old.ref for old in older[: self._history])
            kept = (turn.ref, *(ref for ref in refs if ref != turn.ref and changes.lives(ref)))
        for ref in kept:
            changes.hold(ref, Holder.SESSION, row.name)
        for ref in row.kept:
            if ref not in kept:
                changes.let_go(ref, Holder.SESSION, row.name)
        return replace(
            row,
            head=None if turn is None else turn.ref,
            n_tokens=0 if turn is None else turn.n_tokens,
            kept=kept,
        )

    def turn_at(self, changes: Changes, row: SessionRow, ref: str) -> LogEntry:
        """Returns the newest turn of a session that led to `ref`.

        Raises:
            StateNotFound: There is none in the log, or its state is no longer kept.
        """
        log = changes.log(row.name)
        turn = next((turn for turn in log if turn.ref == ref), None)
        if turn is None:
            raise StateNotFound(f"{ref} is not in the log of {row.name!r}. {_reach(row, log)}")
        return self._kept_turn(changes, row.name, turn)

    def rewind_target(
        self, changes: Changes, row: SessionRow, turns: int, to: str | None
    ) -> LogEntry | None:
        """Returns the turn to go back to; ``None`` for before the first.

        Raises:
            StateNotFound: The log does not reach so far, or that state is no longer kept.
        """
        if to is not None:
            return self.turn_at(changes, row, to)
        if turns == row.turns:
            return None
        turn = changes.turn(row.name, row.turns - turns) if turns < row.turns else None
        if turn is None:
            reach = _reach(row, changes.log(row.name))
            raise StateNotFound(f"Cannot rewind {row.name!r} by {turns} turns. {reach}")
        return self._kept_turn(changes, row.name, turn)

    def _kept_turn(self, changes: Changes, session: str, turn: LogEntry) -> LogEntry:
        if not changes.lives(turn.ref):
            raise StateNotFound(
                f"Turn {turn.seq} of {session!r} is in its log, but its state {turn.ref} is "
                "no longer kept: before a head there are as many as history= says of the store "
                "that turns are committed through."
            )
        return turn


def _reach(row: SessionRow, log: Sequence[LogEntry]) -> str:
    if not log:
        return "It has no turns."
    turns = "1 turn" if row.turns == 1 else f"{row.turns} turns"
    return (
        f"It has {turns}, and its log reaches back to turn {log[-1].seq} (a log keeps "
        f"{LOG_ENTRIES})."
    )


LEASE_SECONDS = 15.0
"""How long a place holds from its last renewal: so long a killed process keeps others waiting."""


def line(view: Tables, session: str) -> list[QueuedTurn]:
    """Returns the places that still hold, in order."""
    return [
        QueuedTurn(row.token, row.process, row.since, row.expires)
        for row in view.queue(session)
        if row.expires > view.now
    ]


def enter(changes: Changes, session: str, token: str, seconds: float) -> int:
    """Takes a place at the end, or renews the one that a token has; returns how many stand before.

    A place that ran out is lost, its own too: another turn may have begun.
    """
    rows = changes.queue(session)
    living = [row for row in rows if row.expires > changes.now]
    changes.drop_places([row for row in rows if row.expires <= changes.now])
    own = next((row for row in living if row.token == token), None)
    seq = own.seq if own is not None else max((row.seq for row in rows), default=0) + 1
    since = own.since if own is not None else changes.now
    changes.put_place(
        QueueRow(session, seq, token, os.getpid(), since, expires=changes.now + seconds)
    )
    return sum(row.seq < seq for row in living)


def require_empty(view: Tables, session: str) -> None:
    """Checks that nobody has a place.

    Raises:
        SessionConflict: A turn runs or waits, which goes by the session's name.
    """
    turns = line(view, session)
    if turns:
        waiting = f", and {len(turns) - 1} wait" if len(turns) > 1 else ""
        raise SessionConflict(
            f"A turn of session {session!r} is under way (process {turns[0].process}{waiting}): "
            "try again when it has ended."
        )


def leave(changes: Changes, session: str, token: str) -> bool:
    """Gives a place up; says whether there was one."""
    own = [row for row in changes.queue(session) if row.token == token]
    changes.drop_places(own)
    return bool(own)


def end(changes: Changes, session: str, token: str) -> None:
    """Gives up the place of a turn that is being committed.

    Raises:
        SessionConflict: The place ran out, and another turn began.
    """
    rows = changes.queue(session)
    living = [row for row in rows if row.expires > changes.now]
    if living and living[0].token != token and _ran_out(living, token):
        raise SessionConflict(
            f"This turn of session {session!r} was stopped for longer than its place in the queue "
            f"holds, and another turn began (process {living[0].process}): repeat the turn."
        )
    changes.drop_places([row for row in rows if row.token == token])


def _ran_out(living: Sequence[QueueRow], token: str) -> bool:
    own = next((row.seq for row in living if row.token == token), None)
    return own is None or living[0].seq < own


def any_ran_out(view: Tables) -> bool:
    """Says whether there are places, in any queue, that nobody holds any more."""
    return any(row.expires <= view.now for row in view.queues())


def sweep(changes: Changes) -> None:
    """Removes the places that nobody holds any more; there are as many as turns were killed."""
    changes.drop_places([row for row in changes.queues() if row.expires <= changes.now])
