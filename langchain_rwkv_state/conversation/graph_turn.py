"""Runs a model for a graph's thread: from which state it goes on, and which its answer leads to.

What a graph hands over and gets back are messages and a field; nothing here knows LangGraph. The
marker exists only inside the call of the model, where no other part of the graph can eat, forge or
show it.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig

from langchain_rwkv_state.base import RWKVModel
from langchain_rwkv_state.conversation.coverage import Coverage, Covered
from langchain_rwkv_state.conversation.filings import filings_of
from langchain_rwkv_state.conversation.session_calls import SessionCalls
from langchain_rwkv_state.errors import (
    RWKVStateError,
    StateExpired,
    StateMismatch,
    StateNotFound,
)
from langchain_rwkv_state.prompt.markers import (
    STATE_KEY,
    Mark,
    hand_out,
    message_digest,
    without_markers,
)
from langchain_rwkv_state.prompt.plan import is_begun
from langchain_rwkv_state.store import TTL, StateStore
from langchain_rwkv_state.store.clock import ttl_seconds
from langchain_rwkv_state.store.rows import NAME_MAX

T = TypeVar("T")

_OUT_OF_REACH = (StateNotFound, StateExpired, StateMismatch)
"""What a model says of a state that it cannot go on from."""

_NOTHING_TO_READ = (
    "The thread has dropped the messages that this state stands for: go back to a checkpoint whose "
    "state is kept, or begin a new thread. With keep_all=True threads keep their messages."
)

_REMOVE_ALL = "__remove_all__"
"""LangGraph's `REMOVE_ALL_MESSAGES`."""


@dataclass(frozen=True)
class ThreadKeeping:
    """What a graph's threads keep of what their states stand for.

    Args:
        keep_last: How many covered messages a thread keeps at least.
        keep_all: Whether it keeps all of them.
        ttl: How long its states live after its last use.

    Raises:
        TypeError: `keep_last` is no integer.
        ValueError: `keep_last` or the time to live is not possible.
    """

    keep_last: int = 0
    keep_all: bool = False
    ttl: TTL = None

    def __post_init__(self) -> None:
        if isinstance(self.keep_last, bool) or not isinstance(self.keep_last, int):
            raise TypeError(f"keep_last is {self.keep_last!r:.100}: pass a number of messages.")
        if self.keep_last < 0:
            raise ValueError(f"keep_last is {self.keep_last}: pass 0, or more for some to show.")
        if self.keep_all and self.keep_last:
            raise ValueError(
                f"keep_all=True keeps every message, and keep_last={self.keep_last} some: pass "
                "one of them."
            )
        ttl_seconds(self.ttl, 1.0)

    def begin(
        self, field: object, messages: Sequence[BaseMessage], *, keep_turn: bool = False
    ) -> tuple[Coverage, list[BaseMessage], list[BaseMessage]]:
        """Begins a turn of a thread: drops what its states stand for.

        Args:
            field: The thread's field, as `Coverage.of` takes it.
            messages: The thread's messages.
            keep_turn: Whether the turn may be under way already: its messages stay.

        Returns:
            The coverage of the messages that stay; these; and what takes the rest from the thread:
            covered messages, those that a client sent once more, and clients' markers. Where one of
            them has no id to be named by, it takes all, and gives these once more.
        """
        coverage = Coverage.of(field)
        talk = coverage.without_repeats(without_markers(messages))
        if not self.keep_all:
            coverage, dropped = coverage.moved_on(
                talk, keep_last=self.keep_last, keep_turn=keep_turn
            )
            talk = talk[dropped:]
        coverage = replace(coverage, ids=(talk[-1].id,) if talk else ())
        stay = {id(message) for message in talk}
        gone = [message for message in messages if id(message) not in stay]
        ids = [message.id for message in gone]
        if None in ids:  # deepagents gives none to ("user", "...") and {"role": ...}
            return coverage, talk, [RemoveMessage(id=_REMOVE_ALL), *talk]
        return coverage, talk, [RemoveMessage(id=cast("str", each)) for each in ids]


def _owner_of(config: RunnableConfig) -> str | None:
    """Returns who holds the states of a run's thread; ``None`` for a run that has none.

    Raises:
        ValueError: The thread's id is too long for a name in the store.
    """
    thread = config.get("configurable", {}).get("thread_id")
    owner = f"thread:{thread}"
    if len(owner) > NAME_MAX:
        raise ValueError(
            f"The thread_id {owner[7:47]!r}... has {len(owner) - 7} characters: its states are "
            f"kept for 'thread:<thread_id>', a name of at most {NAME_MAX}. Pass a shorter one."
        )
    return None if thread is None else owner


def unbound(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Returns what options, tools or a configuration are bound to."""
    while isinstance(model, RunnableBinding):
        model = model.bound
    return model


class GraphTurn:
    """One call of a graph's model.

    Args:
        coverage: The thread's.
        messages: What the model is to have read before it answers, without the system prompt.
        model: The model, also with options bound to it.
        config: The run's.

    Attributes:
        coverage: The thread's; once `answered`, with the answer, where a state stands for it.
        ref: The answer's state, to be kept.

    Raises:
        TypeError: The model is a session, which remembers by itself.

    Warns:
        UserWarning: The model is not of this package, and keeps no states.
    """

    def __init__(
        self,
        coverage: Coverage,
        messages: Sequence[BaseMessage],
        model: Runnable[Any, Any],
        config: RunnableConfig,
    ) -> None:
        self.coverage = coverage
        self.ref: str | None = None
        self._messages = without_markers(messages)
        self._owner = _owner_of(config)
        # Answers of a thread that has no field: it began without one, or has lost it. Within
        # another graph they are that one's, which holds them.
        refs = (one.response_metadata.get(STATE_KEY) for one in self._messages)
        is_own = coverage == Coverage() and not _is_within_another(config)
        self._unaccounted = set(refs) - {None} if is_own else set()
        self._mark: Mark | None = None
        self._store: StateStore | None = None
        self._to_read: list[BaseMessage] = self._messages
        chat = unbound(model)
        if isinstance(chat, RWKVModel):
            self._store = chat.store
            # Something must be left to read: a last message that is an answer is gone on with.
            most = max(len(self._messages) - 1, 0)
            standing = coverage.standing(self._messages)
            self._ways = [one for one in standing if one.count <= most]
            self._take(self._ways[0])
        elif isinstance(chat, SessionCalls):
            raise TypeError(
                f"The agent's model is {type(chat).__name__}, which remembers by its own name, "
                "whatever checkpoint the thread is at: pass the ChatRWKV itself."
            )
        else:
            warnings.warn(
                f"{type(chat).__name__} keeps no states: of this thread it knows the messages that "
                "are still there, and what it answers is read by the next ChatRWKV.",
                stacklevel=3,
            )

    def ask(self, model: Callable[[list[BaseMessage]], T]) -> T:
        """Calls the model, once more from an earlier state where it cannot reach a later one.

        Args:
            model: Answers messages.

        Warns:
            UserWarning: Messages are read again.
        """
        while True:
            try:
                return model([*self._to_read])
            except _OUT_OF_REACH as error:
                self._step_back(error)

    async def aask(self, model: Callable[[list[BaseMessage]], Awaitable[T]]) -> T:
        """As `ask`, on the event loop."""
        while True:
            try:
                return await model([*self._to_read])
            except _OUT_OF_REACH as error:
                self._step_back(error)

    def answered(self, result: Sequence[BaseMessage]) -> None:
        """Takes the answer. One that no state stands for is read with what comes next.

        Args:
            result: What the call gave; an answer first.

        Warns:
            UserWarning: The answer does not go on from the state that the model was given.
        """
        if self._mark is None or self._store is None:
            return
        filings = filings_of(self._store)
        filed = filings.of(self._mark.turn_id)
        filings.forget(self._mark.turn_id)
        answer = next((one for one in result if isinstance(one, AIMessage)), None)
        if answer is None:
            return
        ref = answer.response_metadata.get(STATE_KEY)
        own = [one for one in filed if one.ref == ref and one.base == self._mark.ref]
        if not own:
            if self._mark.ref is not None:
                warnings.warn(
                    "This answer does not go on from the thread's state: another model gave it (a "
                    "fallback), a cache, or a middleware behind RWKVStateMiddleware took the "
                    "state's marker away. Stand RWKVStateMiddleware last.",
                    stacklevel=3,
                )
            return
        # An answer that was rewritten since, or that goes on with the message before it, is not
        # what the state stands for.
        rewritten = all(one.text_digest != message_digest(answer) for one in own)
        if not rewritten and not (self._messages and is_begun(self._messages[-1])):
            self.ref = str(ref)
            self.coverage = self.coverage.and_answered(self._messages, answer, self.ref)

    def keep(self, ttl: TTL) -> None:
        """Keeps the answer's state, if there is one, for the thread.

        Args:
            ttl: How long it is to live.

        Warns:
            UserWarning: The thread has lost its field.
        """
        if self._owner is not None and self.ref is not None and self._store is not None:
            if self._unaccounted:
                self._warn_of_forgotten(self._store.kept(self._owner))
            self._store.keep(self.ref, self._owner, ttl)

    async def akeep(self, ttl: TTL) -> None:
        """As `keep`, on the event loop."""
        if self._owner is not None and self.ref is not None and self._store is not None:
            if self._unaccounted:
                self._warn_of_forgotten(await self._store.akept(self._owner))
            await self._store.akeep(self.ref, self._owner, ttl)

    def _warn_of_forgotten(self, kept: Sequence[str]) -> None:
        if not self._unaccounted.isdisjoint(kept):
            warnings.warn(
                "This thread has states, but its field that names them is gone, as after a run of "
                "the graph without RWKVStateMiddleware: what its messages do not hold any more is "
                "forgotten. Go on from an earlier checkpoint, and give every run the middleware.",
                stacklevel=4,
            )

    def _step_back(self, error: RWKVStateError) -> None:
        """Goes on from an earlier state; raises the error where there is none."""
        if self._mark is None or len(self._ways) < 2:
            if self._mark is not None and self._mark.ref is not None:
                error.add_note(_NOTHING_TO_READ)
            raise error
        lost = self._ways.pop(0)
        self._take(self._ways[0])
        warnings.warn(
            f"{error} Of the thread, {lost.count - self._ways[0].count} messages are read again.",
            stacklevel=4,
        )

    def _take(self, base: Covered) -> None:
        self._mark = Mark(base.ref, uuid.uuid4().hex)
        self._to_read = [hand_out(self._mark), *self._messages[base.count :]]


def _is_within_another(config: RunnableConfig) -> bool:
    """Says whether a graph runs within another, which may hand it that one's messages."""
    return "|" in config.get("configurable", {}).get("checkpoint_ns", "")
