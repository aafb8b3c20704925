"""Says what every store is: states by reference, and sessions that are moving names for them.

A store needs no model. It gives durable, compare-and-swap names to states; it does not decide what
a turn is. An implementation writes the verbs of `StoreVerbs`; all else comes from here.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from langchain_rwkv_state.store.by_name import ByName
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.records import (
    Backup,
    CheckReport,
    Codec,
    LogEntry,
    LogKind,
    SessionInfo,
    StoreStats,
)
from langchain_rwkv_state.store.shown import store_html

__all__ = [
    "TTL",
    "Backup",
    "Beside",
    "CheckReport",
    "Codec",
    "LogEntry",
    "LogKind",
    "SessionInfo",
    "StateStore",
    "StoreStats",
]


class Beside(Protocol):
    """What a part above the store keeps in memory of its sessions."""

    @property
    def is_needed(self) -> bool:
        """Whether the store is to stay open for it."""
        ...

    def renamed(self, session: str, new_session: str) -> None:
        """Learns that a session has another name."""
        ...


class StateStore(ByName):
    """Keeps states and sessions. Every verb has an async twin with an ``a`` before its name.

    A store is a context manager, in both forms: leaving it closes it.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, zero_state
        >>> from langchain_rwkv_state.store import MemoryStateStore
        >>> state = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> with MemoryStateStore() as store:
        ...     ref = store.stage(state)
        ...     store.commit("bob", ref, parent=None)
        ...     store.head("bob") == ref
        True
    """

    @property
    def beside(self) -> dict[str, Beside]:
        """What the parts above keep in memory beside the store, by what they call it.

        It lives as long as the store is open. Where several objects are one store, they share it.
        """
        kept: dict[str, Beside] = self.__dict__.setdefault("_beside", {})
        return kept

    def _repr_html_(self) -> str:
        return store_html(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
