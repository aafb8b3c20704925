"""Opens the store of a tenant: a part of the server's own that no other tenant sees.

In a directory that is a directory of its own, in Redis keys of its own (``tenant=``), in memory a
store of its own. The easy mistake is to give tenants sessions of different names in one store: who
knows a reference of such a store reads what it stands for.
"""

from __future__ import annotations

from pathlib import Path

from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.store import (
    DiskStateStore,
    MemoryStateStore,
    StateStore,
    default_directory,
)

_TENANTS = "tenants"


def open_store_of(settings: ServeSettings, tenant: str | None) -> StateStore:
    """Opens a store.

    Args:
        settings: The server's; ``store`` says where.
        tenant: Whose it is; ``None`` for the server's own, where there is one tenant alone.

    Raises:
        StoreError: It cannot be opened.
        ValueError: There is no such kind of store.
    """
    if settings.store == "memory:":
        return MemoryStateStore()
    root = default_directory() if settings.store is None else Path(settings.store).expanduser()
    return DiskStateStore(root if tenant is None else root / _TENANTS / tenant)
