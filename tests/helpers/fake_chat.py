"""Answers without weights, true to a chat model's contract with markers and histories.

It "reads" text by adding its bytes to a state's derivation, and remembers which text each
reference stands for, so that a test can ask what a session has really been told.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr

from langchain_rwkv_state.conversation.filings import Filing, filings_of
from langchain_rwkv_state.prompt.markers import (
    STATE_KEY,
    Mark,
    is_marker,
    messages_digest,
    read_marker,
    text_digest,
)
from langchain_rwkv_state.state import RWKVState, StateLayout, zero_state

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=8, head_size=8)
ZERO = zero_state(LAYOUT, "fake/fp32/-/-")


def count_questions(text: str) -> str:
    """Says how many questions the model has heard in this conversation: the default answer."""
    return f"heard {text.count('human:')}"


def lines(messages: Sequence[BaseMessage]) -> str:
    return "".join(f"{message.type}:{message.text}\n" for message in messages)


def read(state: RWKVState, text: str) -> RWKVState:
    return state.advanced({name: state.shared(name) for name in state}, text.encode())


def _nothing_read() -> dict[str | None, str]:
    return {None: ""}


class FakeChat(BaseChatModel):
    """Answers `script`, one entry a call (an exception is raised), then by `answer`."""

    store: Any
    script: list[str | Exception] = Field(default_factory=list)
    answer: Callable[[str], str] = count_questions
    before_answer: Callable[[], None] | None = None
    texts: dict[str | None, str] = Field(default_factory=_nothing_read)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "fake-rwkv"

    def told(self, session: str) -> str:
        """What the state of a session stands for."""
        return self.texts[self.store.head(session)]

    def _plan(self, messages: Sequence[BaseMessage]) -> tuple[Mark, str, list[BaseMessage]]:
        places = [place for place, message in enumerate(messages) if is_marker(message)]
        if not places:
            return Mark(None), "", list(messages)
        assert len(places) == 1, "two markers"
        block, after = messages[: places[0]], messages[places[0] + 1 :]
        return read_marker(messages[places[0]]), lines(block), list(after)

    def _stage(self, parent: str | None, state: RWKVState, told: str, text: str) -> str:
        ref: str = self.store.stage(state, parent=parent, tokens=tuple(text.encode()))
        self.texts[ref] = told + text
        return ref

    def _turn(self, messages: Sequence[BaseMessage]) -> tuple[str, Callable[[], str]]:
        """Returns the answer, and what stages and files it."""
        mark, block, after = self._plan(messages)
        base = ZERO if mark.ref is None else self.store.get(mark.ref)
        digest = hashlib.sha256(block.encode()).hexdigest() if block else base.system_digest
        head = block if mark.ref is None or digest != base.system_digest else ""
        prompt = head + lines(after)
        told = self.texts[mark.ref]
        with self._lock:
            said = self.script.pop(0) if self.script else self.answer(told + prompt)
        if self.before_answer is not None:
            self.before_answer()
        if isinstance(said, Exception):
            raise said
        answer: str = said

        def file() -> str:
            text = f"{prompt}ai:{answer}\n"
            ref = self._stage(mark.ref, read(base, text).with_system_digest(digest), told, text)
            if mark.turn_id is None:
                return ref
            unread_ref = unread_digest = None
            unread = after[: mark.n_unread]
            if mark.n_unread and len(unread) == mark.n_unread:
                covered = head + lines(unread)
                state = read(base, covered).with_system_digest(digest)
                unread_ref = self._stage(mark.ref, state, told, covered)
                unread_digest = messages_digest(unread)
            filing = Filing(text_digest(answer), ref, mark.ref, unread_ref, unread_digest)
            filings_of(self.store).file(mark.turn_id, filing)
            return ref

        return answer, file

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer, file = self._turn(messages)
        message = AIMessage(answer, response_metadata={STATE_KEY: file()})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer, file = self._turn(messages)
        for character in answer:
            yield ChatGenerationChunk(message=AIMessageChunk(content=character))
        last = AIMessageChunk(
            content="", response_metadata={STATE_KEY: file()}, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop):
            yield chunk
