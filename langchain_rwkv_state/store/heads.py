"""What moving a head means: forward at a commit, back at a rewind, and what is kept of the way.

Each function works on the ledger of one transaction and returns the session's new row, which the
caller saves. The easy mistake is to let go of a state before the new holder has it: a state goes
with its last holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from langchain_rwkv_state.errors import StateNotFound
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.ledger import LOG_ENTRIES, Ledger
from langchain_rwkv_state.store.rows import LogRow, Origin, SessionRow


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

    def living(self, ledger: Ledger, session: str) -> SessionRow:
        """Returns a living session, or a new one in the place of an expired one."""
        row = ledger.session(session)
        if row is not None:
            return row
        ledger.remove_session(session, expired=True)
        return SessionRow(
            name=session,
            head=None,
            n_tokens=0,
            turns=0,
            created=ledger.now,
            updated=ledger.now,
            expires=ledger.now + self._ttl,
            ttl=self._ttl,
            sliding=self._sliding,
        )

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
        ledger: Ledger,
        row: SessionRow,
        ref: str,
        origin: Origin | None,
        said: tuple[str, ...] = (),
    ) -> SessionRow:
        """Moves a head forward, and lets go of the states that leave the history."""
        state = ledger.state_to_hold(ref)
        wanted = (ref, *(old for old in row.kept if old != ref))
        kept, dropped = wanted[: self._history + 1], wanted[self._history + 1 :]
        ledger.hold(ref, b"s", row.name)
        for old in dropped:
            ledger.let_go(old, b"s", row.name)
        turn = LogRow(
            row.name, row.turns + 1, ref, row.head, state.n_tokens, ledger.now, origin, said
        )
        ledger.add_turn(turn)
        return replace(row, head=ref, n_tokens=state.n_tokens, turns=turn.seq, kept=kept)

    def back_to(self, ledger: Ledger, row: SessionRow, turn: LogRow | None) -> SessionRow:
        """Moves a head to a turn of its own log, with the history that is still stored."""
        kept: tuple[str, ...] = ()
        if turn is not None:
            older = [old for old in ledger.log(row.name) if old.seq < turn.seq]
            refs = dict.fromkeys(old.ref for old in older[: self._history])
            kept = (turn.ref, *(ref for ref in refs if ref != turn.ref and ledger.lives(ref)))
        for ref in kept:
            ledger.hold(ref, b"s", row.name)
        for ref in row.kept:
            if ref not in kept:
                ledger.let_go(ref, b"s", row.name)
        return replace(
            row,
            head=None if turn is None else turn.ref,
            n_tokens=0 if turn is None else turn.n_tokens,
            kept=kept,
        )

    def turn_at(self, ledger: Ledger, row: SessionRow, ref: str) -> LogRow:
        """Returns the newest turn of a session that led to `ref`.

        Raises:
            StateNotFound: There is none in the log, or its state is no longer kept.
        """
        log = ledger.log(row.name)
        turn = next((turn for turn in log if turn.ref == ref), None)
        if turn is None:
            raise StateNotFound(f"{ref} is not in the log of {row.name!r}. {_reach(row, log)}")
        return self._kept_turn(ledger, turn)

    def rewind_target(
        self, ledger: Ledger, row: SessionRow, turns: int, to: str | None
    ) -> LogRow | None:
        """Returns the turn to go back to; ``None`` for before the first.

        Raises:
            StateNotFound: The log does not reach so far, or that state is no longer kept.
        """
        if to is not None:
            return self.turn_at(ledger, row, to)
        if turns == row.turns:
            return None
        turn = ledger.turn(row.name, row.turns - turns) if turns < row.turns else None
        if turn is None:
            reach = _reach(row, ledger.log(row.name))
            raise StateNotFound(f"Cannot rewind {row.name!r} by {turns} turns. {reach}")
        return self._kept_turn(ledger, turn)

    def _kept_turn(self, ledger: Ledger, turn: LogRow) -> LogRow:
        if not ledger.lives(turn.ref):
            raise StateNotFound(
                f"Turn {turn.seq} of {turn.session!r} is in its log, but its state {turn.ref} is "
                "no longer kept: before a head there are as many as history= says of the store "
                "that turns are committed through."
            )
        return turn


def _reach(row: SessionRow, log: Sequence[LogRow]) -> str:
    if not log:
        return "It has no turns."
    turns = "1 turn" if row.turns == 1 else f"{row.turns} turns"
    return (
        f"It has {turns}, and its log reaches back to turn {log[-1].seq} (a log keeps "
        f"{LOG_ENTRIES})."
    )
