"""Conversations that are questioned without being changed, and end when they are over.

A `Talk` is a session and, for the control, its transcript. Nothing is counted here. The easy
mistake is to ask in the session itself: then each question is a turn, and helps the next.
"""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from langchain_rwkv_state.chat_models import ChatRWKV
from langchain_rwkv_state.prompt.markers import marker
from langchain_rwkv_state.state import RWKVState


class Stopped(Exception):
    """Nobody waits for what a conversation would say any more."""


class Talk:
    """A session with a model, and its transcript.

    Args:
        chat: The model; answers should be greedy.
        name: A session that is new in the model's store.
        system: A system prompt, if any.
        stopped: Says whether to go no further; asked before each answer.

    Raises:
        Stopped: At the first answer after it was stopped.
    """

    def __init__(
        self,
        chat: ChatRWKV,
        name: str,
        system: str = "",
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.chat = chat
        self._stopped = stopped
        self.session = chat.with_session(name)
        self.transcript: list[BaseMessage] = [SystemMessage(system)] if system else []

    def say(self, text: str | BaseMessage) -> str:
        """Says something in the session, which reads only what is new; returns the answer."""
        message = HumanMessage(text) if isinstance(text, str) else text
        new = [message] if self.session.head else [*self.transcript, message]
        _go_on(self._stopped)
        answer = self.session.invoke(new)
        self.transcript += [message, answer]
        return str(answer.text)

    def ask(self, text: str) -> str:
        """Asks from a fork: the session stays where it is."""
        head = self.session.head
        before = [marker(head)] if head else self.transcript
        _go_on(self._stopped)
        return str(self.chat.invoke([*before, HumanMessage(text)]).text)

    def replay(self, text: str) -> str:
        """Asks behind the whole transcript, read from nothing, without any state."""
        said = [_plain(message) for message in self.transcript]
        _go_on(self._stopped)
        return str(self.chat.invoke([*said, HumanMessage(text)]).text)

    def state(self) -> RWKVState:
        """Returns the state behind the last turn.

        Raises:
            ValueError: Nothing was said yet.
        """
        head = self.session.head
        if head is None:
            raise ValueError(f"Nothing was said in {self.session.session!r} yet.")
        return self.session.store.get(head)


class Talks:
    """The conversations of one case; `close` deletes them.

    Many cases share one model and one store, so that the model answers them together.

    Args:
        chat: The model.
        case: A name that no other case has at the time.
        stopped: Says whether to go no further.
    """

    def __init__(
        self, chat: ChatRWKV, case: str, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.chat, self.case = chat, case
        self._stopped = stopped
        self._begun: list[str] = []

    def begin(self, name: str, system: str = "") -> Talk:
        """Starts a conversation of that name."""
        self._begun.append(f"{self.case}: {name}")
        return Talk(self.chat, self._begun[-1], system, self._stopped)

    def ask(self, state: RWKVState, text: str) -> str:
        """Asks from a state of any origin."""
        store = self.chat.store
        ref = store.stage(state)
        store.keep(ref, self.case)
        _go_on(self._stopped)
        return str(self.chat.invoke([marker(ref), HumanMessage(text)]).text)

    def close(self) -> None:
        """Deletes all conversations, and lets go of all states."""
        self.chat.store.release(self.case)
        for session in self._begun:
            self.chat.store.delete_session(session)


def _go_on(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise Stopped


def _plain(message: BaseMessage) -> BaseMessage:
    """Returns an answer without its metadata, as a transcript would keep it."""
    return AIMessage(message.text) if isinstance(message, AIMessage) else message
