"""A state that cannot be read: whose it is, and what can be done about it.

It reads the books and files and changes nothing. The easy mistake is to name the state alone: who
is told of a digest does not know which conversation is meant, nor that it can go back by a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.backend import Backend
from langchain_rwkv_state.store.records import LogEntry
from langchain_rwkv_state.store.rows import Holder, SessionRow, StateRow
from langchain_rwkv_state.store.state_file import checked_state
from langchain_rwkv_state.store.tables import Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

IsWhole = Callable[[StateRow], bool]
_NAMED = 3  # sessions; thousands may begin with one state


def read_state(backend: Backend, row: StateRow, key: bytes) -> tuple[bytes, RWKVState]:
    """Returns a stored state's file, and the state in it.

    Raises:
        StateCorrupt: The file is missing, was changed, or holds another state.
    """
    try:
        data = backend.read_blob(row.blob, row.nbytes)
    except StateCorrupt as error:
        raise StateCorrupt(f"The file of the state {row.ref} cannot be used: {error}") from error
    state = checked_state(data, row, key)
    assert data is not None  # noqa: S101  # checked_state
    return data, state


def stored_state(backend: Backend, look: Callable[[], Tables], ref: str, key: bytes) -> RWKVState:
    """Returns a living state.

    Args:
        backend: The rows and blobs.
        look: Gives a view of the rows as they stand.
        ref: The state.
        key: The store's secret.

    Raises:
        StateExpired, StateNotFound: It is not here.
        StateCorrupt: It cannot be read; the message says whose it is and what mends it.
    """
    try:
        return read_state(backend, look().state(ref), key)[1]
    except StateCorrupt:
        view = look()
        row = view.state(ref)  # deleted, or stored anew, since the look above
        try:
            return read_state(backend, row, key)[1]
        except StateCorrupt as error:
            raise with_advice(error, backend, view, row, key) from error


def with_advice(
    error: StateCorrupt, backend: Backend, view: Tables, row: StateRow, key: bytes
) -> StateCorrupt:
    """Returns an error about a state's file that also says whose it is and what mends it."""

    def is_whole(other: StateRow) -> bool:
        try:
            read_state(backend, other, key)
        except (StateCorrupt, StoreError):
            return False
        return other.ref != row.ref

    return StateCorrupt(" ".join([str(error), *advice(view, row.ref, is_whole)]))


def advice(view: Tables, ref: str, is_whole: IsWhole) -> list[str]:
    """Returns sentences on who needs a state that cannot be read, and on the verbs that help."""
    sentences: list[str] = []
    more = 0
    for holder in view.holders(ref):
        if holder is None:
            continue
        if len(sentences) >= _NAMED:
            more += 1
        elif holder.kind == Holder.SESSION:
            sentences.append(_for_session(view, holder.owner, ref, is_whole))
        elif holder.kind == Holder.OWNER:
            sentences.append(
                f"{holder.owner!r} keeps it: check(fix=True) lets go of it, and so does "
                f"store.release({holder.owner!r})."
            )
        elif holder.kind == Holder.PUT:
            sentences.append("It was put: check(fix=True) forgets it, and then it can be put anew.")
    if more:
        sentences.append(f"{more} more need it.")
    return sentences


def way_back(view: Tables, row: SessionRow, is_whole: IsWhole) -> LogEntry | None:
    """Returns the newest turn of a session whose state is kept and whole; ``None`` for none.

    Raises:
        StateCorrupt: The session's log was changed.
    """
    for turn in view.log(row.name):
        if turn.ref in row.kept:
            state = view.stored_state(turn.ref)
            if state is not None and is_whole(state):
                return turn
    return None


def _for_session(view: Tables, name: str, ref: str, is_whole: IsWhole) -> str:
    try:
        row = view.stored_session(name)
        if row is None:
            return f"The session {name!r} needed it, and is gone."
        if row.head != ref:
            return (
                f"The session {name!r} keeps it as an earlier state, and its head is another: "
                "check(fix=True) lets go of it."
            )
        turn = way_back(view, row, is_whole)
    except StateCorrupt as error:
        return f"The session {name!r} needs it, and cannot be read either: {error}"
    if turn is None:
        return (
            f"The session {name!r} needs it and has no other whole state: restore the store from a "
            f"copy, or let the session start anew with store.delete_session({name!r})."
        )
    back = row.turns - turn.seq
    verb = f"store.rewind({name!r})" if back == 1 else f"store.rewind({name!r}, turns={back})"
    return (
        f"Its session {name!r} can go back to turn {turn.seq} of {row.turns}: {verb}, or "
        "check(fix=True) for all of the store."
    )
