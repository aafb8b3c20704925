"""The queue of a session's turns: who may begin next, across threads and processes.

A turn takes a place with a number and a time until which it holds; it may begin when no place that
still holds stands before its own. A place says nothing of heads or states: a commit is still a
compare-and-swap. The easy mistake is to believe in a place for good: whoever was stopped for
longer than its lease finds another turn begun, and its own place gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.store.records import QueuedTurn
from langchain_rwkv_state.store.rows import QueueRow
from langchain_rwkv_state.store.tables import Changes, Tables

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

    Args:
        changes: The tables.
        session: The session's name.
        token: The caller's own, which nobody else knows.
        seconds: How long the place is to hold from now on.
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
