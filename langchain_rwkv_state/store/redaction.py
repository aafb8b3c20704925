"""Takes turns out of a session: its state is read again without them, and what held them goes.

A place in a conversation is known by its ids: from the reference before a turn and the turn's ids
follow the references of all states that stand on it, under whatever name they are kept. First all
is read that will be needed, then one transaction looks again and changes everything; last the disk
is scrubbed, which a note in the tables makes up for where a program is killed in between.
Two sessions that were told the same words have one state: whoever said them himself keeps them.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.errors import (
    RWKVStateError,
    SessionConflict,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import reference
from langchain_rwkv_state.store import turns
from langchain_rwkv_state.store.backend import Backend, change
from langchain_rwkv_state.store.rebuild import read_tokens, rebuild
from langchain_rwkv_state.store.records import (
    LogEntry,
    Origin,
    Redaction,
    joined,
    pack_tokens,
    unpack_tokens,
)
from langchain_rwkv_state.store.redacted_ids import Cut, Line, RedactedIds, listeners
from langchain_rwkv_state.store.rows import Holder, SessionRow, StateRow
from langchain_rwkv_state.store.settings import is_whole
from langchain_rwkv_state.store.tables import LOG_ENTRIES, Changes, Tables
from langchain_rwkv_state.store.transcript import (
    ModelAtWork,
    is_joined,
    logged_session,
    model_for,
    origin_of,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.store.store import TableStore

logger = logging.getLogger("langchain_rwkv_state.store")

_SCRUB = "scrub"
"""Notes that the disk is still to be scrubbed, and of which states' files."""


@dataclass(frozen=True)
class _Found:
    """Who has the turns, and which states stand on them.

    Attributes:
        sessions: The sessions that are to be without them: row, log (oldest first) and what goes.
        expired: Sessions that have expired and are still there.
        doomed: The states.
    """

    sessions: dict[str, tuple[SessionRow, list[LogEntry], list[Cut]]]
    expired: set[str]
    doomed: set[str]


def _survey(view: Tables, name: str, line: Line, cuts: Sequence[Cut]) -> _Found:
    """Finds all that has the turns, in the tables as they stand."""
    start = min(cut.start for cut in cuts)
    path = {ref for ref, at in line.known.items() if ref is not None and at > start}
    for row in view.origins():
        if row.ref not in path and row.origin is not None:
            seen = LogEntry(row.ref, row.parent, row.n_tokens, 0.0, origin=row.origin)
            reach = line.reach(seen)
            if any(reach >= cut.end for cut in cuts):
                path.add(row.ref)
    while True:
        more = view.states_after(path) - path
        if not more:
            break
        path |= more
    sessions: dict[str, tuple[SessionRow, list[LogEntry], list[Cut]]] = {}
    expired: set[str] = set()
    spared: set[str] = set()
    gone: set[str] = set()
    for each in view.sessions_with(path):
        stored = view.stored_session(each)
        if stored is None:
            continue
        log = view.log(each)[::-1]
        own = list(cuts) if each == name else line.cuts_of(log, cuts)
        if not own:
            spared |= {*stored.kept, *(turn.ref for turn in log)}
            continue
        first = min(cut.start for cut in own)
        gone |= {turn.ref for turn in log if turn.n_tokens > first}
        if stored.expires <= view.now:
            expired.add(each)
        else:
            sessions[each] = stored, log, own
    return _Found(sessions, expired, (path | gone) - spared)


@dataclass(frozen=True)
class _Rewritten:
    """A session as it will be.

    Attributes:
        row: As it stands.
        turns: The turns that take the place of its last ones.
        first: The number of the first turn that is another then.
        states: The states that it may keep, by their references, with what they are made from.
    """

    row: SessionRow
    turns: list[LogEntry]
    first: int
    states: dict[str, tuple[RWKVState, Origin]]

    @property
    def parents(self) -> dict[str, str | None]:
        """What the new turns were read from."""
        return {turn.ref: turn.parent for turn in self.turns}


def redact(store: TableStore, session: str, numbers: Sequence[int], given: Any) -> Redaction:
    """See `TableStore.redact`."""
    view = store._view()
    log = logged_session(view, session)
    gone = _chosen(session, log, numbers)
    first = gone[0].seq
    model = model_for(origin_of(gone[0]).fingerprint, given, reads=True)
    base = _base_state(store, view, gone[0], model)
    line = Line(log, first, base.derivation, store._key)
    cuts = _cuts(log, gone, model)
    found = store._look(lambda tables: _survey(tables, session, line, cuts))
    if session not in found.sessions or found.sessions[session][1] != log:
        raise _moved(session)
    plans = [
        _rewritten(store, view, each, found.sessions[each], model)
        for each in sorted(found.sessions)
    ]
    files = _written(store, plans)
    try:
        result = store._write(
            lambda changes: _happen(store, changes, session, line, cuts, plans, files)
        )
    finally:
        for row in files:
            store._tidy(row)
    stays = {turn.ref for plan in plans for turn in plan.turns}
    try:
        cached = _forgotten_elsewhere(store, found.doomed - stays, line.redacted(cuts))
    except (StoreError, StoreFull) as error:
        raise StoreError(
            f"The turns are out of the session {session!r}, but not all that was deleted is off "
            f"the disk yet. {error}"
        ) from error
    return replace(result, cached=cached)


def _forgotten_elsewhere(store: TableStore, doomed: set[str], redacted: RedactedIds) -> int:
    """Has it forgotten outside the tables, too; returns how much caches dropped."""
    try:
        store._staging.forget(doomed | store._staging.after(doomed))
        return sum(listener(redacted) for listener in list(listeners))
    finally:
        finish(store._backend, store._clock.now())


def finish(backend: Backend, now: float) -> None:
    """Scrubs the disk where a redaction asks for that; does nothing where none does.

    Raises:
        StoreError: Somebody reads what was there before.
    """
    while (note := backend.view(now).meta(_SCRUB)) is not None:
        backend.scrub(frozenset(json.loads(note)))
        change(backend, now, functools.partial(_scrubbed, note=note), freeing=True)


def _scrubbed(changes: Changes, note: bytes) -> None:
    """Notes that the disk was scrubbed, unless another redaction has asked for that meanwhile.

    The note names states too: it goes in two steps, so that the log is empty behind the first.
    """
    if changes.meta(_SCRUB) != note:
        return
    if json.loads(note):
        changes.note(_SCRUB, b"[]")
    else:
        changes.forget_note(_SCRUB)


def finish_if_due(backend: Backend, now: float) -> None:
    """As `finish`, where a store is opened: what cannot be scrubbed now is so another time."""
    try:
        finish(backend, now)
    except (RWKVStateError, ValueError) as error:
        logger.warning("What was redacted is not off the disk yet: %s", error)


def _chosen(session: str, log: Sequence[LogEntry], numbers: Any) -> list[LogEntry]:
    """Returns the turns that are to go, oldest first.

    Raises:
        ValueError: There is no such turn, or its ids are not there; the message says which.
    """
    if isinstance(numbers, str) or not isinstance(numbers, Sequence) or not numbers:
        raise ValueError(f"turns is a list of turns' numbers, such as [3], got {numbers!r:.100}.")
    by_number = {turn.seq: turn for turn in log}
    newest = log[-1].seq if log else 0
    for number in numbers:
        if not is_whole(number, 1) or number > newest:
            raise ValueError(
                f"The session {session!r} has turns 1 to {newest}, and {number!r} is none of them: "
                "store.transcript(session) gives their numbers."
                if newest
                else f"The session {session!r} has no turns."
            )
        if number not in by_number:
            raise ValueError(
                f"Turn {number} of the session {session!r} lies before its log, which reaches back "
                f"to turn {log[0].seq} (a log keeps {LOG_ENTRIES}): its token ids cannot be told "
                "from those of other turns. Delete the session to be rid of it."
            )
        if by_number[number].origin is not None and is_joined(by_number[number], log[0]):
            raise ValueError(
                f"Turn {number} of the session {session!r} is the oldest in its log, and its token "
                "ids cannot be told from those of the turns before it. Delete the session to be "
                "rid of it."
            )
    gone = [by_number[number] for number in sorted(set(numbers))]
    _require_ids(session, log, gone[0].seq)
    return gone


def _require_ids(session: str, log: Sequence[LogEntry], first: int) -> None:
    """Checks that the ids from a turn on are there, without a gap.

    Raises:
        ValueError: They are not.
    """
    before = next((turn.ref for turn in reversed(log) if turn.seq < first), None)
    for turn in log:
        if turn.seq < first:
            continue
        if turn.origin is None or (before is not None and turn.origin.base != before):
            raise ValueError(
                f"The token ids of turn {turn.seq} of the session {session!r} are not kept, so "
                "that it cannot be read again: a store keeps them while it is opened with "
                "log='tokens'. Rewind or delete the session instead."
            )
        before = turn.ref


def _base_state(store: TableStore, view: Tables, first: LogEntry, model: ModelAtWork) -> RWKVState:
    """Returns the state before a turn, rebuilt where it is no longer kept."""
    origin = origin_of(first)
    if origin.base is None:
        return model.runtime.zero_state().with_fingerprint(origin.fingerprint)

    def get(ref: str) -> RWKVState:
        return store.get(ref, renew=False)

    return rebuild(view, store._key, get, origin.base, model.runtime)


def _cuts(log: Sequence[LogEntry], gone: Sequence[LogEntry], model: ModelAtWork) -> list[Cut]:
    """Returns where the turns lie, without the system block that one may begin with."""
    blocks = {turn.seq: None if turn.origin is None else turn.origin.block for turn in log}
    cuts = []
    for turn in gone:
        tokens = unpack_tokens(origin_of(turn).tokens)
        start, block = turn.n_tokens - len(tokens), blocks[turn.seq]
        stays = 0
        if block is not None and block != blocks.get(turn.seq - 1):
            stays = _template(model).block_length(tokens, block) or 0
        cuts.append(Cut(turn, start + stays, turn.n_tokens))
    return cuts


def _template(model: ModelAtWork) -> Any:
    if model.template is None:
        raise ValueError(
            "A runtime does not know how a chat is written, which has to be known to take out the "
            "turn that a conversation begins with: pass the chat object of the model as runtime=."
        )
    return model.template


def _rewritten(
    store: TableStore,
    view: Tables,
    name: str,
    found: tuple[SessionRow, list[LogEntry], list[Cut]],
    model: ModelAtWork,
) -> _Rewritten:
    """Reads a session again without what goes.

    Raises:
        ValueError: The ids for that are not there.
    """
    row, log, cuts = found
    first = next(turn for turn in log if turn.n_tokens > cuts[0].start)
    _require_ids(name, log, first.seq)
    if first.n_tokens - len(unpack_tokens(origin_of(first).tokens)) > cuts[0].start:
        raise ValueError(
            f"The session {name!r} holds turn {cuts[0].turn.seq}, too, and its own token ids do "
            "not reach back so far: delete that session first."
        )
    state = _base_state(store, view, first, model)
    head, seq = origin_of(first).base, first.seq - 1
    told_block = block = state.system_digest  # as it was, and as it will be
    stayed: tuple[int, ...] = ()  # a system block of turns that go
    begins = False  # whether it is what the conversation begins with
    made: list[LogEntry] = []
    states: dict[str, tuple[RWKVState, Origin]] = {}
    before = next((turn for turn in log if turn.seq == first.seq - 1), None)
    if before is not None and before.origin is not None:
        states[before.ref] = state.to("cpu"), _whole_origin(view, states, before.origin)
    for turn in (each for each in log if each.seq >= first.seq):
        origin = origin_of(turn)
        tokens = unpack_tokens(origin.tokens)
        at = turn.n_tokens - len(tokens)
        stays = tuple(token for n, token in enumerate(tokens, at) if not _is_cut(n, cuts))
        begins = begins or (at == 0 and not _is_cut(0, cuts))
        goes = any(cut.turn.ref == turn.ref for cut in cuts)
        if origin.block != told_block:
            told_block = origin.block
            if stays or not goes:  # else it cannot be told from what goes
                block = told_block
        if goes:
            stayed += stays
            continue
        read = stayed + stays
        if state.n_tokens == 0 and not begins:
            read = _template(model).opening_ids(read)
        stayed = ()
        state = read_tokens(model.runtime, state, read).with_system_digest(block)
        told = Origin(head, pack_tokens(read), origin.fingerprint, block)
        head, parent, seq = reference(state.derivation, store._key), head, seq + 1
        made.append(
            replace(turn, ref=head, parent=parent, n_tokens=state.n_tokens, origin=told, seq=seq)
        )
        states[head] = state.to("cpu"), _whole_origin(view, states, told)
        for old in list(states)[: -_depth(store, row)]:
            del states[old]
    return _Rewritten(row, made, first.seq, states)


def _depth(store: TableStore, row: SessionRow) -> int:
    """Returns how many states a session keeps: as many as it did, if the store says fewer."""
    return max(store._settings.history + 1, len(row.kept))


def _is_cut(at: int, cuts: Iterable[Cut]) -> bool:
    return any(cut.start <= at < cut.end for cut in cuts)


def _whole_origin(
    view: Tables, states: dict[str, tuple[RWKVState, Origin]], told: Origin
) -> Origin:
    """Returns a state's origin from as far back as is known."""
    if told.base in states:
        return joined(states[told.base][1], told)
    row = None if told.base is None else view.stored_state(told.base)
    return told if row is None or row.origin is None else joined(row.origin, told)


def _written(store: TableStore, plans: Iterable[_Rewritten]) -> list[StateRow]:
    """Writes the files of the states that sessions will keep, and gives the rows for them."""
    view = store._view()
    rows: list[StateRow] = []
    try:
        for plan in plans:
            for ref, (state, origin) in plan.states.items():
                if not view.lives(ref) and ref not in {row.ref for row in rows}:
                    rows.append(store._write_blob(ref, state, plan.parents.get(ref), origin))
    except BaseException:
        for row in rows:
            store._tidy(row)
        raise
    return rows


def _happen(
    store: TableStore,
    changes: Changes,
    session: str,
    line: Line,
    cuts: Sequence[Cut],
    plans: Sequence[_Rewritten],
    files: Sequence[StateRow],
) -> Redaction:
    """Changes everything, in the transaction."""
    found = _survey(changes, session, line, cuts)
    standing = [_unmoved(changes, plan.row) for plan in plans]
    for name in found.sessions.keys() - {plan.row.name for plan in plans}:
        raise _moved(name)
    for row in files:
        if changes.stored_state(row.ref) is None:
            changes.add_state(row)
    before = changes.states_removed
    for name in found.expired:
        changes.remove_session(name, expired=True)
    head = None
    for plan, now in zip(plans, standing, strict=True):
        new = _put(store, changes, plan, now)
        if now.name == session:
            head = new.head
    kept = {ref for plan in plans for ref in plan.states}
    doomed = found.doomed - kept
    owners: set[str] = set()
    for ref in sorted(doomed):
        owners |= {hold.owner for hold in changes.erase_state(ref) if hold.kind == Holder.OWNER}
    digests = {ref[-64:] for ref in doomed} | set(json.loads(changes.meta(_SCRUB) or b"[]"))
    changes.note(_SCRUB, json.dumps(sorted(digests)).encode())
    return Redaction(
        session,
        tuple(cut.turn.seq for cut in cuts),
        head,
        tuple(plan.row.name for plan in plans if plan.row.name != session),
        tuple(sorted(owners)),
        changes.states_removed - before,
        0,
    )


def _put(store: TableStore, changes: Changes, plan: _Rewritten, row: SessionRow) -> SessionRow:
    """Gives a session its new log and states, and lets go of the old ones.

    Args:
        store: The store.
        changes: The transaction.
        plan: The session as it will be.
        row: As it stands, with what was appended to it meanwhile.
    """
    changes.cut_log(row.name, plan.first - 1)
    changes.put_turns(row.name, plan.turns)
    log = changes.log(row.name)
    refs = list(dict.fromkeys(turn.ref for turn in log))[: _depth(store, row)]
    kept = [ref for ref in refs if ref in plan.states or ref in row.kept or changes.lives(ref)]
    if log and log[0].ref not in kept:
        raise StateNotFound(
            f"The state before the turns that are taken out of {row.name!r} is no longer kept: "
            "try again."
        )
    for ref in kept:
        changes.hold(ref, Holder.SESSION, row.name)
    for ref in row.kept:
        if ref not in kept:
            changes.let_go(ref, Holder.SESSION, row.name)
    new = replace(
        row,
        head=log[0].ref if log else None,
        n_tokens=log[0].n_tokens if log else 0,
        turns=log[0].seq if log else 0,
        updated=changes.now,
        kept=tuple(kept),
    )
    changes.save_session(new, row)
    return new


def _unmoved(changes: Changes, row: SessionRow) -> SessionRow:
    """Returns a session as it stands; a renewal or an unread message changes no turn.

    Raises:
        SessionConflict: It is not where it was when it was read again, or a turn is under way.
    """
    now = changes.session(row.name)
    if now is None or (now.head, now.turns, now.kept) != (row.head, row.turns, row.kept):
        raise _moved(row.name)
    turns.require_empty(changes, row.name)
    return now


def _moved(session: str) -> SessionConflict:
    return SessionConflict(
        f"The session {session!r} moved while turns were taken out of it, and nothing was changed: "
        "try again."
    )
