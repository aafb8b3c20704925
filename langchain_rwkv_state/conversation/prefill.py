"""Reads messages or a text without answering them, into a session or for a state of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage

from langchain_rwkv_state._progress import LateBar
from langchain_rwkv_state.base import RWKVModel
from langchain_rwkv_state.conversation.session_turn import GONE, SessionTurn
from langchain_rwkv_state.conversation.steps import Outcome, OutcomeCall, Steps, Work
from langchain_rwkv_state.conversation.waiting import WAIT_SECONDS
from langchain_rwkv_state.engine import Done, Request, in_own_context
from langchain_rwkv_state.loaded import Loaded
from langchain_rwkv_state.prompt.markers import as_model_input, to_messages
from langchain_rwkv_state.prompt.plan import PromptPlan, plan, plan_text, stage
from langchain_rwkv_state.store import TTL


class Prefill:
    """Reads an input without an answer: `ChatRWKV.prefill`, as steps.

    Args:
        chat: The model that reads.
        model_input: As for `ChatRWKV.prefill`, and so are those that follow.
        session: The session to read into.
        ttl: Time to live of what comes of it.
        on_progress: Called as it is read.
        timeout: Seconds for all of it.
        thoughts: Whether thoughts of earlier answers are read too.

    Raises:
        TypeError, ValueError: `on_progress` or `timeout` cannot be used.
    """

    def __init__(
        self,
        chat: RWKVModel,
        model_input: LanguageModelInput,
        session: str | None,
        ttl: TTL,
        on_progress: Callable[[int, int], None] | None,
        timeout: float | None,
        thoughts: bool,
    ) -> None:
        self._chat = chat
        self._ttl = ttl
        self._thoughts = thoughts
        _check_prefill(on_progress, timeout)
        given = as_model_input(model_input)
        self._text = given if isinstance(given, str) else None
        self._messages = [] if isinstance(given, str) else to_messages(given)
        self._bar = LateBar("Reading", progress=chat.progress)
        self._on_progress = on_progress or self._bar.tell
        self._begun = time.monotonic()
        self._timeout = chat.timeout if timeout is None else timeout
        self._turn: SessionTurn | None = None
        if session is not None:
            wait = WAIT_SECONDS if self._timeout is None else self._timeout
            self._turn = SessionTurn(
                chat.store, session, self._messages, ttl=ttl, wait_seconds=wait, answered=False
            )

    def steps(self) -> Steps[str]:
        """Reads and stores, and returns the reference of the state.

        Raises:
            DeadlineExceeded: The reading took too long; nothing is stored.
            SessionConflict: The session's head moved, or its turns before did not end in time.
            StoreFull: The store has no room.
        """
        turn = self._turn
        if turn is None:
            planned, done = yield from self._read(None)
            state = done.state.with_system_digest(planned.system_digest)
            stored: str = yield OutcomeCall("put", state, ttl=self._ttl)
            return stored
        try:
            planned, done = yield from self._read((yield from turn.begin()))
            ref: str = yield Work(stage, planned, done, self._chat.store)
            yield from turn.commit(ref, None)
        except GONE as error:
            raise (yield from turn.lost(error)) from error
        finally:
            yield from turn.end()
        return ref

    def _read(self, messages: Sequence[BaseMessage] | None) -> Steps[tuple[PromptPlan, Done]]:
        with self._bar:
            loaded, planned, request = yield Work(self._plan, messages)
            done = yield Outcome(loaded.engine.submit(request))
        return planned, done

    def _plan(self, messages: Sequence[BaseMessage] | None) -> tuple[Loaded, PromptPlan, Request]:
        """Makes the prompt plan, behind a session's messages where there are some."""
        chat, loaded = self._chat, self._chat.loaded()
        if self._text is not None:
            planned = plan_text(
                self._text,
                after=messages or (),
                template=loaded.template,
                store=chat.store,
                zero=loaded.zero,
            )
        else:
            planned = plan(
                self._messages if messages is None else messages,
                template=loaded.template,
                store=chat.store,
                zero=loaded.zero,
                answer=False,
                thoughts=self._thoughts,
            )
        request = Request(
            base=planned.base,
            prompt=planned.ids,
            # In the caller's context, where a turn of the same session is seen to be under way.
            on_progress=in_own_context(self._on_progress) if self._on_progress else None,
            caching=planned.caching(chat.prefix_cache, chat.cache_salt),
            deadline=self._left(),
        )
        return loaded, planned, request

    def _left(self) -> float | None:
        if self._timeout is None:
            return None
        return max(0.001, self._timeout - (time.monotonic() - self._begun))


def _check_prefill(on_progress: object, timeout: object) -> None:
    """Checks what `ChatRWKV.prefill` is given beside its input.

    Raises:
        TypeError: `on_progress` cannot be called, or `timeout` is no number.
        ValueError: `timeout` is no number of seconds above zero.
    """
    if on_progress is not None and not callable(on_progress):
        raise TypeError(
            f"on_progress is {on_progress!r:.100}, which cannot be called: pass a function of "
            "(tokens read, tokens to read), or None."
        )
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(
            f"timeout is {timeout!r:.100}: pass a number of seconds, or None for the model's own."
        )
    if not timeout > 0:
        raise ValueError(
            f"timeout is {timeout!r}: pass a number of seconds above zero, or None for the model's "
            "own."
        )
