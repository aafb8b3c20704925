"""What moving a head means: forward at a commit, back at a rewind, and what is kept of the way.

Each function works on the changes of one transaction and returns the session's new row, which the
caller saves. The easy mistake is to let go of a state before the new holder has it: a state goes
with its last holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from langchain_rwkv_state.errors import StateNotFound
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.records import LogEntry, Origin
from langchain_rwkv_state.store.rows import Holder, SessionRow
from langchain_rwkv_state.store.tables import LOG_ENTRIES, Changes


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
