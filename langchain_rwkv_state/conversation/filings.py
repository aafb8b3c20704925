"""Keeps, in memory, what a model answered in a turn that a history began, for the history to find.

A model files each answer under the turn's id, with the state behind it; a history looks there for
the one that it was given. Turns that could not be stored wait here too, by session. All objects of
one store in this process share one `Filings`; another process sees none of it, and a turn that is
noted here and not yet stored ends with the process.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.prompt.markers import flattened_key, message_digest, text_digest
from langchain_rwkv_state.store.staging import STAGED_TTL_SECONDS

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from langchain_rwkv_state.engine import Done
    from langchain_rwkv_state.prompt.plan import PromptPlan
    from langchain_rwkv_state.store import StateStore

_TURNS_MAX = 10_000  # a filing takes 300 bytes


@dataclass(frozen=True)
class Filing:
    """An answer that a model filed under a turn id.

    Attributes:
        text_digest: Digest of the answer's text.
        ref: The state behind the answer (staged).
        base: The head that the model was handed, ``None`` for a new session.
        unread_ref: The state behind the history's last unread message, where there were any.
        unread_digest: Digest of the unread messages as the model read them.
    """

    text_digest: str
    ref: str
    base: str | None
    unread_ref: str | None = None
    unread_digest: str | None = None


@dataclass(frozen=True)
class EndedTurn:
    """What was said in a turn, with what tells which filed state stands for it.

    Attributes:
        messages: As JSON texts.
        answer_digest: Digest of the answer's text, ``None`` where no answer stands last.
        turn_id: Under which the model filed, ``None`` for a turn that nobody began.
        base: The head that the turn began with.
        n_unread: How many unread messages it began with.
        unread_digest: Their digest, ``None`` for none.
        said: Digests of what was said, for the session's log.
        unread_said: The same of the unread messages.
    """

    messages: tuple[str, ...]
    answer_digest: str | None
    turn_id: str | None
    base: str | None
    n_unread: int
    unread_digest: str | None
    said: tuple[str, ...] = ()
    unread_said: tuple[str, ...] = ()


class Filings:
    """The filed answers and the unsaved turns of one store; nothing in here can fail.

    Args:
        now: Gives seconds.
        ttl_seconds: How long a filing is held: as long as the staged state that it names.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        *,
        ttl_seconds: float = STAGED_TTL_SECONDS,
    ) -> None:
        self._now = now
        self._ttl = ttl_seconds
        self._lock = ForkLock()
        self._turns: OrderedDict[str, tuple[float, tuple[Filing, ...]]] = OrderedDict()
        self._unsaved: dict[str, deque[EndedTurn]] = {}

    def file(self, turn_id: str, filing: Filing) -> None:
        """Notes an answer under a turn id, for a quarter of an hour."""
        with self._lock:
            _, filed = self._turns.pop(turn_id, (0.0, ()))
            self._turns[turn_id] = (self._now(), (*filed, filing))
            self._forget_old()

    def of(self, turn_id: str | None) -> list[Filing]:
        """Returns what was filed under a turn id, oldest first."""
        with self._lock:
            self._forget_old()
            return list(self._turns.get(turn_id or "", (0.0, ()))[1])

    def forget(self, turn_id: str | None) -> None:
        """Drops what was filed under a turn id."""
        with self._lock:
            self._turns.pop(turn_id or "", None)

    def note_unsaved(self, session: str, turn: EndedTurn) -> None:
        """Holds a turn that could not be stored, behind those already held for the session."""
        with self._lock:
            self._unsaved.setdefault(session, deque()).append(turn)

    def take_unsaved(self, session: str) -> list[EndedTurn]:
        """Hands over the turns held for a session, oldest first, and holds them no more."""
        with self._lock:
            return list(self._unsaved.pop(session, ()))

    # -- what the store asks -------------------------------------------------------------------

    @property
    def is_needed(self) -> bool:
        """Whether a turn waits to be stored, for which the store is to stay open."""
        return bool(self._unsaved)

    def renamed(self, session: str, new_session: str) -> None:
        """Follows a session to its new name."""
        for turn in self.take_unsaved(session):
            self.note_unsaved(new_session, turn)

    def _forget_old(self) -> None:
        oldest = self._now() - self._ttl
        while self._turns and (
            len(self._turns) > _TURNS_MAX or next(iter(self._turns.values()))[0] < oldest
        ):
            self._turns.popitem(last=False)


def filings_of(store: StateStore) -> Filings:
    """Returns the filings of a store, the same for all objects of it in this process."""
    found = store.beside.get("filings") or store.beside.setdefault("filings", Filings())
    return cast("Filings", found)


def file_answer(
    reading: PromptPlan, done: Done, ref: str, store: StateStore, message: BaseMessage | None = None
) -> None:
    """Files an answer under the turn id that a history handed out, if one did.

    An answer to words that once were a marker is filed as such: whoever misses it under its turn
    then knows that the cause was told.

    Args:
        reading: What was read.
        done: The answer.
        ref: The state behind it.
        store: Where that is staged.
        message: The answer as its caller has it; ``None`` for its bare text.
    """
    digest = text_digest(done.text) if message is None else message_digest(message)
    filings = filings_of(store)
    if reading.flattened:
        filings.file(flattened_key(digest), Filing(digest, ref, reading.base_ref))
    if reading.turn_id is None:
        return
    unread_ref = None
    if reading.unread_at is not None and done.checkpoints:
        state = done.checkpoints[0].with_system_digest(reading.system_digest)
        tokens = reading.ids[: reading.unread_at]
        unread_ref = store.stage(state, parent=reading.base_ref, tokens=tokens)
    filings.file(
        reading.turn_id,
        Filing(digest, ref, reading.base_ref, unread_ref, reading.unread_digest),
    )
