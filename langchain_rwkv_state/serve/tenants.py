"""Who asks: each key is a tenant, with a store and a part of the prefix cache of its own.

A tenant's store is opened when it first asks. All tenants share the one model: a chat object is
settings, and its engine answers everybody in one batch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from langchain_rwkv_state.chat_models import ChatRWKV
from langchain_rwkv_state.llms import RWKVLLM
from langchain_rwkv_state.serve.settings import Limits, ServeSettings
from langchain_rwkv_state.store import StateStore


class Usage:
    """Hears what a tenant's answers cost; `metrics` and limits derive from it."""

    def spent(self, *, read: int, cached: int, answered: int) -> None:
        """Takes note of an answer.

        Args:
            read: Tokens of the prompt, the cached ones too.
            cached: Those that had not to be read.
            answered: Tokens of the answer.
        """


@dataclass(frozen=True)
class Tenant:
    """One who asks.

    Attributes:
        name: Its name.
        chat: Answers its messages; what it reads is kept apart from that of others.
        llm: Completes its texts, likewise.
        store: Its conversations, and nobody else's.
        limits: What it may ask.
        usage: Hears what its answers cost.
    """

    name: str
    chat: ChatRWKV
    llm: RWKVLLM
    store: StateStore
    limits: Limits = field(default_factory=Limits)
    usage: Usage = field(default_factory=Usage)


class Tenants:
    """Everybody who may ask.

    Args:
        settings: What the server was started with.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._all: dict[str, Tenant] = {}

    def load(self) -> None:
        """Loads the model, before anybody asks."""
        self._opened("default").chat.loaded()

    async def of(self, key: str | None) -> Tenant:
        """Returns the tenant of a key.

        Args:
            key: As it was sent; ``None`` for none.
        """
        del key
        return await asyncio.to_thread(self._opened, "default")

    def close(self) -> None:
        """Lets go of stores and model."""
        for tenant in self._all.values():
            tenant.chat.unload()
            tenant.llm.unload()
            tenant.store.close()

    def _opened(self, name: str) -> Tenant:
        if name not in self._all:
            settings = self._settings
            chat = ChatRWKV(
                model=settings.model,
                strategy=settings.strategy,
                tokenizer=settings.tokenizer,
                template=settings.template,
                store=settings.store,
                **(settings.options or {}),
            )
            llm = RWKVLLM(
                model=settings.model,
                strategy=settings.strategy,
                tokenizer=settings.tokenizer,
                template=settings.template,
                store=chat.store,
            )
            self._all[name] = Tenant(name, chat, llm, chat.store, settings.limits)
        return self._all[name]
