"""Talks in many sessions through one `Runnable`: each call's configuration names its own.

`RWKVSessions` is for chains, graphs and servers, where one object serves all users and LangChain
carries the name along. It finds the name; the turn is that of `RWKVSession`. An application must
check who may use which name.
"""

from __future__ import annotations

from langchain_core.runnables import ConfigurableFieldSpec, RunnableConfig
from langchain_core.runnables.config import ensure_config

from langchain_rwkv_state.conversation.session_calls import SessionCalls
from langchain_rwkv_state.store import check_session
from langchain_rwkv_state.store.base import store_html

_EXAMPLE = 'config={"configurable": {"session_id": "bob"}}'

CONFIG_SPECS = (
    # Word for word those of RunnableWithMessageHistory and of LangGraph's checkpointers: two that
    # differ cannot stand in one chain.
    ConfigurableFieldSpec(
        id="session_id",
        annotation=str,
        name="Session ID",
        description="Unique identifier for a session.",
        default="",
        is_shared=True,
    ),
    ConfigurableFieldSpec(
        id="thread_id",
        annotation=str,
        name="Thread ID",
        description=None,
        default="",
        is_shared=True,
    ),
)


class RWKVSessions(SessionCalls):
    """Durable conversations by the name that each call has, made by `ChatRWKV.with_sessions`.

    The name is ``session_id`` in ``config["configurable"]``, or else ``thread_id``. Turns are those
    of `RWKVSession`, and its rules hold: only new messages are read, and turns of one session wait
    for each other. `batch` takes a configuration for each input and serves different sessions
    beside one another.

    Args:
        chat: The model that answers; its answers name states in `store`.
        store: Where the sessions live.
        ttl: Each session's time to live from each commit on; ``None`` for the store's default.
        on_conflict: As for `RWKVSession`.
        wait_timeout: As for `RWKVSession`.
        on_abort: As for `RWKVSession`.

    Raises:
        ValueError: At construction: the time to live, `on_conflict` or `on_abort` is not
            possible. At a call: the configuration names no session, or two, or one with a name that
            cannot be.
        TypeError, SessionConflict, StoreFull: As `RWKVSession`.

    Example:
        >>> chain = prompt | chat.with_sessions(ttl="1h") | StrOutputParser()  # doctest: +SKIP
        >>> bob = {"configurable": {"session_id": "bob"}}
        >>> chain.invoke({"text": "My name is Bob."}, bob)  # doctest: +SKIP
    """

    def __repr__(self) -> str:
        return f"RWKVSessions(store={self.store!r})"

    def _repr_html_(self) -> str:
        return store_html(self.store)

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What a call's configuration may hold."""
        return list(CONFIG_SPECS)

    def _session_of(self, config: RunnableConfig | None) -> str:
        given = ensure_config(config).get("configurable") or {}
        named = {
            key: given[key] for key in ("session_id", "thread_id") if given.get(key) is not None
        }
        if not named:
            raise ValueError(
                "No session is named: this takes its name from the call's configuration. Pass "
                f"{_EXAMPLE}, or a thread_id in its place."
            )
        session, *others = named.values()
        if others and others[0] != session:
            raise ValueError(
                f"Two sessions are named, session_id {session!r:.100} and thread_id "
                f"{others[0]!r:.100}: pass one of them, such as {_EXAMPLE}."
            )
        check_session(session, None)
        return str(session)
