"""Names a store on disk now, and opens it at its first use.

A chat object is settings and nothing else, and LangChain makes one for many a call: what its
`store` names is opened by whoever asks something of it. All else is `DiskStateStore`.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state._registry import of_process
from langchain_rwkv_state.errors import StoreError, StoreFull
from langchain_rwkv_state.store.base import StateStore
from langchain_rwkv_state.store.disk import DiskStateStore
from langchain_rwkv_state.store.memory import MemoryStateStore
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES


class LazyDiskStateStore(DiskStateStore):
    """A `DiskStateStore` that opens its directory at its first use.

    Args:
        path: The directory; ``None`` for the user's own, as it is found when it is opened.

    Raises:
        StoreError, StoreFull: At each use, where it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._named = path

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Opens the store: it is what opening sets that is not there yet."""
            if name.startswith("__") or name == "_named" or "_path" in vars(self):
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            # In one step: where two threads do this, they come to the same.
            vars(self).update(vars(DiskStateStore(self._named)))
            return getattr(self, name)

    @property
    def named(self) -> str | None:
        """The directory as it was given, ``None`` for the user's own."""
        return None if self._named is None else os.fspath(self._named)

    def opened(self) -> DiskStateStore:
        """Opens the store, if that was not done yet, and returns it."""
        self._check_open()
        return self

    def or_memory(self) -> StateStore:
        """Returns this store, or one in memory where it is the user's own and cannot be opened.

        Answers that need no memory are given all the same then, as in a container whose disk is
        read-only, with one warning: their states cannot be committed.
        """
        try:
            return self.opened()
        except (StoreError, StoreFull) as error:
            if self._named is not None or "_path" in vars(self):
                raise
            mine = object()
            if vars(self).setdefault("_told", mine) is mine:
                warnings.warn(
                    "The user's own store cannot be opened, so that states of answers are kept in "
                    "memory alone, and sessions are not possible: pass store=, or set "
                    f"RWKV_STATE_DIR. {error}",
                    stacklevel=3,
                )
            return of_process("store of those without a home", _in_memory)

    def __repr__(self) -> str:
        return f"DiskStateStore({self.named!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its name: where it arrives, it is opened anew."""
        return LazyDiskStateStore, (self.named,)


def _in_memory() -> StateStore:
    return MemoryStateStore(staged_bytes=STAGED_BUDGET_BYTES)
