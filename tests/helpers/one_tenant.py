"""Serves a chat model that is already there, a scripted one perhaps, to whoever asks."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from langchain_rwkv_state import RWKVLLM, ChatRWKV
from langchain_rwkv_state.serve import ServeSettings, make_app
from langchain_rwkv_state.serve.tenants import Tenant, Tenants, Usage


class Spent(Usage):
    """Remembers what answers cost.

    Attributes:
        answers: What each cost: tokens read, cached ones of them, tokens answered.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, int, int]] = []

    def spent(self, *, read: int, cached: int, answered: int) -> None:
        """Notes an answer."""
        self.answers.append((read, cached, answered))


class OneTenant(Tenants):
    """Takes everybody for one.

    Args:
        chat: Answers messages.
        llm: Completes texts; made from `chat`'s model where it is not given.
        settings: The server's.

    Attributes:
        usage: What answers cost.
    """

    def __init__(
        self, chat: ChatRWKV, llm: RWKVLLM | None = None, settings: ServeSettings | None = None
    ) -> None:
        super().__init__(settings or ServeSettings())
        llm = llm or RWKVLLM(model=chat.model, strategy=chat.strategy, store=chat.store)
        if chat._loaded is not None and llm._loaded is None:
            llm._loaded = chat._loaded
        self.usage = Spent()
        self._one = Tenant("one", chat, llm, chat.store, self.usage)

    def load(self) -> None:
        """Loads nothing anew."""
        self._one.chat.loaded()

    async def enter(self, name: str) -> Tenant:
        """Returns the one."""
        return self._one

    def leave(self, name: str) -> None:
        """Does nothing: the one stays."""

    def close(self) -> None:
        """Closes nothing: that is for whoever made the models."""


def app_over(chat: ChatRWKV, llm: RWKVLLM | None = None, **settings: Any) -> FastAPI:
    """Returns an application that serves these models."""
    known = ServeSettings(**{"model": "demo", **settings})
    return make_app(known, tenants=OneTenant(chat, llm, known))
