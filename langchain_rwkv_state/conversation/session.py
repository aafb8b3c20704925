"""Talks in one session, by its name: `RWKVSession`.

It holds the name; the calls are those of `SessionCalls`. It is one conversation: for all users of a
server there is `RWKVSessions`.
"""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig

from langchain_rwkv_state.conversation.session_calls import SessionCalls
from langchain_rwkv_state.conversation.session_turn import SESSION_KEY, OnAbort, OnConflict
from langchain_rwkv_state.conversation.waiting import WAIT_SECONDS
from langchain_rwkv_state.store import TTL, LogEntry, StateStore, check_session
from langchain_rwkv_state.store.base import session_html

__all__ = ["SESSION_KEY", "OnAbort", "OnConflict", "RWKVSession"]


class RWKVSession(SessionCalls):
    """A durable conversation, made by `ChatRWKV.with_session`.

    Each call reads only the new messages, answers, and commits. Markers in the input are dropped:
    a reference is a capability, and a session reads no other conversation than its own. Of a
    transcript (a graph's whole thread) only what the session does not hold yet is read.

    Turns of one session come one after another, in the order in which they came, across threads and
    processes, unless `on_conflict` says otherwise.

    Args:
        chat: The model that answers; its answers name states in `store`.
        store: Where the session lives.
        session: The session's name, 1 to 512 characters.
        ttl: The session's time to live from each commit on (seconds, a `timedelta`, or a text such
            as ``"12h"``); ``None`` means the store's default, `math.inf` never.
        on_conflict: What to do about other turns of this session: ``wait`` for those that came
            before; or begin at once and, where somebody else committed meanwhile, ``raise`` a
            `SessionConflict` or ``fork`` the conversation under a new name, which the answer's
            ``response_metadata["rwkv_session"]`` gives.
        wait_timeout: Seconds to wait for the turns before; then `SessionConflict`.
        on_abort: What to do about a turn that is aborted: its stream is closed before its end, its
            task is cancelled, or Ctrl-C is pressed. ``forget`` it; or ``keep_question``, so that
            the next turn reads what was said in this one. Asked again by then, it is read once. A
            part of an answer is never kept, and an error of model or store is no abort.

    Raises:
        ValueError: At construction: the name, the time to live, `on_conflict` or `on_abort` is not
            possible.
        TypeError: The input is no text, messages, prompt value or ``{"messages": ...}``, or an
            empty text; at construction, `wait_timeout` is no number.
        SessionConflict: The wait was too long, or would never end; the head moved during the call
            (with ``wait``, by somebody who did not wait), and the answer is lost, the session not;
            or the input is a transcript of another branch.
        StoreFull: The store has no room; the old head stays.

    Example:
        >>> bob = ChatRWKV(model="demo").with_session("bob")  # doctest: +SKIP
        >>> bob.invoke("My name is Bob.")  # doctest: +SKIP
        >>> bob.invoke("What is my name?").content  # doctest: +SKIP
        'Your name is Bob.'
    """

    def __init__(
        self,
        chat: BaseChatModel,
        store: StateStore,
        session: str,
        *,
        ttl: TTL = None,
        on_conflict: OnConflict = "wait",
        wait_timeout: float = WAIT_SECONDS,
        on_abort: OnAbort = "forget",
    ) -> None:
        super().__init__(
            chat,
            store,
            ttl=ttl,
            on_conflict=on_conflict,
            wait_timeout=wait_timeout,
            on_abort=on_abort,
        )
        check_session(session, ttl)
        self.session = session

    def __repr__(self) -> str:
        return f"RWKVSession({self.session!r}, store={self.store!r})"

    def _repr_html_(self) -> str:
        return session_html(self.store, self.session)

    @property
    def head(self) -> str | None:
        """Reference of the session's state; ``None`` before the first turn."""
        return self.store.head(self.session)

    def log(self) -> list[LogEntry]:
        """Returns the session's last turns, newest first."""
        return self.store.log(self.session)

    def _session_of(self, config: RunnableConfig | None) -> str:  # noqa: ARG002 # it has one name
        return self.session
