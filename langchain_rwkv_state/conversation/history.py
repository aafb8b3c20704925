"""Keeps the history of a LangChain chain as a session of a store: `RWKVStateHistory`.

It hands a chain one state marker in place of a transcript; when the turn ends it commits the state
that the model filed for exactly that turn. It runs no model. It is no list of messages: `messages`
never grows with the conversation, and shows besides the marker only what no state covers yet.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_rwkv_state.conversation.filings import EndedTurn, Filings, filings_of
from langchain_rwkv_state.conversation.history_turn import (
    NOBODYS_TURN,
    Turn,
    as_message,
    state_of_answer,
    state_of_unread,
)
from langchain_rwkv_state.conversation.steps import Steps, StoreCall, arun, run
from langchain_rwkv_state.errors import SessionConflict, StateExpired, StateNotFound
from langchain_rwkv_state.prompt.markers import (
    TURN_KEY,
    flattened_key,
    is_marker,
    message_from_json,
)
from langchain_rwkv_state.store import TTL, StateStore, check_session
from langchain_rwkv_state.store.lazy import lazy_store
from langchain_rwkv_state.store.urls import is_url

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory
else:
    try:
        from langchain_core.chat_history import BaseChatMessageHistory
    except ImportError:  # deprecated, to go in 2.0; nothing of it is needed here
        BaseChatMessageHistory = object

logger = logging.getLogger(__name__)

_TURNS_REMEMBERED = 64  # more calls at once than one conversation has


class RWKVStateHistory(BaseChatMessageHistory):
    """The history of one session, for `RunnableWithMessageHistory` or for a loop of your own.

    It is a `BaseChatMessageHistory` where langchain-core has one, and needs none. An instance for
    each call or one for many calls: both work, also from several threads. Of two turns at once on
    one session, one is committed; the other is kept as text behind it, and read with the next turn.

    Args:
        session_id: The session's name: 1 to 512 characters.
        store: Where the chain's model keeps its states (``chat.store``), or that store's URL.
        ttl: The session's time to live from each turn on; ``None`` for the store's default.

    Raises:
        ValueError: The name or the time to live is not possible.
        TypeError: `store` is no `StateStore` and no URL.

    Example:
        >>> from langchain_core.runnables.history import RunnableWithMessageHistory
        >>> chain = RunnableWithMessageHistory(  # doctest: +SKIP
        ...     prompt | chat | StrOutputParser(),
        ...     lambda session_id: RWKVStateHistory(session_id, chat.store),
        ...     input_messages_key="question",
        ...     history_messages_key="history",
        ... )
        >>> config = {"configurable": {"session_id": "bob"}}
        >>> chain.invoke({"question": "My name is Bob."}, config)  # doctest: +SKIP
        >>> chain.invoke({"question": "What is my name?"}, config)  # doctest: +SKIP
    """

    hands_out_markers: ClassVar[bool] = True
    """Tells a model, which sees the history around a call, that its markers alone count."""

    def __init__(self, session_id: str, store: StateStore | str, *, ttl: TTL = None) -> None:
        super().__init__()
        if isinstance(store, str) and is_url(store):
            store = lazy_store(store)
        if not isinstance(store, StateStore):
            raise TypeError(
                f"The store of a history is {store!r:.100}, which is no StateStore: pass that of "
                "the chain's model, chat.store, or make one, such as DiskStateStore(path)."
            )
        check_session(session_id, ttl)
        self.session_id = session_id
        self.store = store
        self.ttl = ttl
        self._lock = threading.Lock()
        self._open: Turn | None = None
        self._handed_out: deque[Turn] = deque(maxlen=_TURNS_REMEMBERED)

    def __repr__(self) -> str:
        return f"RWKVStateHistory({self.session_id!r}, store={self.store!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the session, store and time to live; a copy begins with no turn open."""
        return functools.partial(type(self), ttl=self.ttl), (self.session_id, self.store)

    @property
    def _filings(self) -> Filings:
        return filings_of(self.store)

    # -- LangChain's verbs -------------------------------------------------------------------

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # read-only on purpose
        """The session's marker, then the messages that no state covers yet.

        Stays the same until `add_messages`, whatever happens to the session meanwhile.

        Raises:
            Exception: Whatever the store raises; also where it failed at the end of an earlier
                turn and still cannot store that turn. Nothing is lost by it: the turn is stored
                before messages are handed out again.
        """
        return [] if _asked_only_for_length() else run(self._begin(), self.store)

    async def aget_messages(self) -> list[BaseMessage]:
        """Returns `messages` without blocking the event loop.

        Raises:
            Exception: As `messages`.
        """
        return [] if _asked_only_for_length() else await arun(self._begin(), self.store)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Ends a turn: commits the state behind its answer, or else keeps its text as unread.

        Never raises: LangChain would log and swallow it. What a failing store could not take is
        held in memory, stored at the next `messages`, or raised there.

        Args:
            messages: What was said in the turn, the answer last.
        """
        run(self._end(messages), self.store)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Does what `add_messages` does without blocking the event loop.

        Args:
            messages: What was said in the turn, the answer last.
        """
        await arun(self._end(messages), self.store)

    def add_message(self, message: BaseMessage) -> None:
        """Ends a turn of one message; see `add_messages`."""
        self.add_messages([message])

    def add_user_message(self, message: HumanMessage | str) -> None:
        """Ends a turn of one message that the user said; see `add_messages`."""
        self.add_message(HumanMessage(message) if isinstance(message, str) else message)

    def add_ai_message(self, message: AIMessage | str) -> None:
        """Ends a turn of one answer; see `add_messages`."""
        self.add_message(AIMessage(message) if isinstance(message, str) else message)

    def clear(self) -> None:
        """Deletes the session.

        Raises:
            StoreError: The store is unusable.
        """
        run(self._clear(), self.store)

    async def aclear(self) -> None:
        """Deletes the session without blocking the event loop.

        Raises:
            StoreError: The store is unusable.
        """
        await arun(self._clear(), self.store)

    # -- a turn, as steps that ask the store ---------------------------------------------------

    def _begin(self) -> Steps[list[BaseMessage]]:
        yield from self._store_unsaved()
        with self._lock:
            turn = self._open
        if turn is not None and (yield from self._is_readable(turn)):
            return turn.messages
        info = yield StoreCall("session", self.session_id)
        fresh = Turn.begun(
            uuid.uuid4().hex,
            info.head if info else None,
            [message_from_json(text) for text in info.unread] if info else [],
            self.session_id,
        )
        with self._lock:
            if self._open is turn:
                self._open = fresh
                self._handed_out.append(fresh)
            return (self._open or fresh).messages

    def _is_readable(self, turn: Turn) -> Steps[bool]:
        """Says whether the state that a turn begins from is still there.

        A call that failed leaves its turn open. Should other calls then move the session so far
        that this state goes, the turn must not be handed out again and again.
        """
        if turn.base is None or (yield StoreCall("head", self.session_id)) == turn.base:
            return True
        log = yield StoreCall("log", self.session_id)
        return any(entry.ref == turn.base and entry.kept for entry in log)

    def _end(self, messages: Sequence[BaseMessage]) -> Steps[None]:
        ended = self._close(messages)
        try:
            settled = yield from self._keep(ended)
        except Exception:
            self._filings.note_unsaved(self.session_id, ended)
            logger.exception(
                "The store failed at the end of a turn of session %r. The turn is held in memory; "
                "it is stored, or the failure raised, when the session's messages are next asked "
                "for.",
                self.session_id,
            )
        except BaseException:  # a cancelled task
            self._filings.note_unsaved(self.session_id, ended)
            raise
        else:
            if settled:
                self._filings.forget(ended.turn_id)

    def _close(self, messages: Sequence[BaseMessage]) -> EndedTurn:
        """Ends the open turn, or the one whose marker leads the messages."""
        said = [as_message(message) for message in messages]
        with self._lock:
            turn = self._named(said) or self._open
            if turn is self._open:
                self._open = None
        return (turn or NOBODYS_TURN).ended(said)

    def _named(self, said: Sequence[BaseMessage]) -> Turn | None:
        """Finds the turn whose marker leads the messages, if this history began it."""
        if not said or not is_marker(said[0]):
            return None
        turn_id = said[0].additional_kwargs.get(TURN_KEY)
        return next((turn for turn in self._handed_out if turn.turn_id == turn_id), None)

    def _keep(self, ended: EndedTurn) -> Steps[bool]:
        """Stores an ended turn: as its state where there is one, else as unread messages.

        Returns whether what was filed may be forgotten: if the turn was committed, or nobody else
        filed. Calls at once on one history share a turn, and where one's filing were gone, that of
        another with the same answer would pass for it.
        """
        filings = self._filings.of(ended.turn_id)
        ref = state_of_answer(ended, filings)
        covered = (*ended.unread_said, *ended.said)
        committed = ref is not None and (yield from self._commit(ended, ref, covered))
        if not committed and ended.messages:
            unread_ref = state_of_unread(ended, filings)
            if unread_ref is not None:
                yield from self._commit(ended, unread_ref, ended.unread_said)
            yield StoreCall("append_unread", self.session_id, ended.messages, self.ttl)
            if not filings:
                self._tell_of_missing(ended)
        return committed or len(filings) < 2

    def _tell_of_missing(self, ended: EndedTurn) -> None:
        """Warns where a marker was handed out, an answer came, and no model filed it."""
        if ended.turn_id is None or ended.answer_digest is None:
            return
        key = flattened_key(ended.answer_digest)
        if self._filings.of(key):  # its cause was told
            self._filings.forget(key)
            return
        text = (
            f"A turn of session {self.session_id!r} was answered, but no model of its store was "
            "shown the session's state marker: the turn is kept as text, to be read again with the "
            "next one. A trimmer or filter (trim_messages, filter_messages, n_messages) cut the "
            "marker, a template or get_buffer_string flattened it to text, another model or a "
            "model with another store answered, or a cache did. With this history a prompt does "
            "not grow: leave trimmers out, and put its messages in with MessagesPlaceholder."
        )
        try:
            warnings.warn(text, stacklevel=2)
        except Warning:  # where warnings are errors: what a history raises would be swallowed
            logger.warning("%s", text)

    def _commit(self, ended: EndedTurn, ref: str, said: tuple[str, ...]) -> Steps[bool]:
        """Commits a state of the turn; says whether the session was still where it began."""
        try:
            yield StoreCall(
                "commit",
                self.session_id,
                ref,
                ended.base,
                self.ttl,
                unread_covered=ended.n_unread,
                said=said,
            )
        except (SessionConflict, StateNotFound, StateExpired) as error:
            logger.info("A turn of session %r stays unread: %s", self.session_id, error)
            return False
        return True

    def _store_unsaved(self) -> Steps[None]:
        unsaved = self._filings.take_unsaved(self.session_id)
        for done, ended in enumerate(unsaved):
            try:
                settled = (yield from self._is_stored(ended)) or (yield from self._keep(ended))
            except BaseException:
                for left in unsaved[done:]:
                    self._filings.note_unsaved(self.session_id, left)
                raise
            if settled:
                self._filings.forget(ended.turn_id)

    def _is_stored(self, ended: EndedTurn) -> Steps[bool]:
        """Says whether a turn that seemed to fail is stored: what was cancelled may yet happen."""
        filings = self._filings.of(ended.turn_id)
        ref = state_of_answer(ended, filings)
        log = (yield StoreCall("log", self.session_id)) if ref is not None else []
        if any(entry.ref == ref for entry in log):
            return True
        info = yield StoreCall("session", self.session_id)
        said = ended.messages
        return info is not None and bool(said) and info.unread[-len(said) :] == said

    def _clear(self) -> Steps[None]:
        self._filings.take_unsaved(self.session_id)
        with self._lock:
            turn, self._open = self._open, None
        if turn is not None:
            self._filings.forget(turn.turn_id)
        yield StoreCall("delete_session", self.session_id)


def _asked_only_for_length() -> bool:
    """Says whether `messages` is read by `RunnableWithMessageHistory` at the end of a turn.

    There it asks for the messages a second time, to cut as many from the front of what the chain
    was given. Another call may have ended meanwhile, with another number of unread messages, and
    the cut would take what the user said. Nothing but the caller tells this reading from that of
    a call that begins. It gets an empty list: nothing is cut, and `add_messages` finds the turn's
    own marker in front. For any other caller, the list that stays as it was handed out serves.
    """
    caller = sys._getframe(2)
    return (
        caller.f_code.co_name in ("_exit_history", "_aexit_history")
        and caller.f_globals.get("__name__") == "langchain_core.runnables.history"
    )
