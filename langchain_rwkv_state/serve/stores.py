"""Opens the store of a tenant: a part of the server's own that no other tenant sees.

In a directory that is a directory of its own, in Redis keys of its own (``tenant=``), in memory a
store of its own. The easy mistake is to give tenants sessions of different names in one store: who
knows a reference of such a store reads what it stands for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from langchain_rwkv_state.prefix_cache import DIRECTORY_VARIABLE, PrefixStateCache
from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.store import DiskStateStore, StateStore, default_directory, open_store
from langchain_rwkv_state.store.memory import MemoryStateStore
from langchain_rwkv_state.store.urls import StoreUrl, environment_url, is_url

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
    if tenant is None:
        return open_store(settings.store)
    url = url_of(settings.store)
    if url is None:
        root = default_directory() if settings.store is None else Path(settings.store).expanduser()
        return DiskStateStore(root / _TENANTS / tenant)
    if url.scheme == "file":
        return DiskStateStore(Path(url.place) / _TENANTS / tenant, **url.settings)
    if url.scheme == "memory":
        return MemoryStateStore.named(f"{url.place}/{_TENANTS}/{tenant}", **url.settings)
    # Of a URL that names a tenant, ours are parts: two servers may share one Redis.
    before = url.settings.get("tenant")
    return url.open(tenant=tenant if before is None else f"{before}-{tenant}")


def cache_of(settings: ServeSettings) -> PrefixStateCache | Literal[False]:
    """Returns the server's prefix cache, ``False`` for none; a tenant's name is its salt there.

    Over Redis it shares pins with all servers there: they lie in the store that the URL itself
    names, for all tenants, each pin under its salt.
    """
    if settings.prefix_cache_bytes == 0:
        return False
    url = url_of(settings.store)
    return PrefixStateCache(
        settings.prefix_cache_bytes,
        disk=os.environ.get(DIRECTORY_VARIABLE) or None,
        shared=None if url is None or not url.is_redis else url.text,
    )


def is_memory(store: str | None) -> bool:
    """Says whether a store lives in this process alone."""
    url = url_of(store)
    return url is not None and url.scheme == "memory"


def url_of(store: str | None) -> StoreUrl | None:
    """Returns the URL that names a store; ``None`` for a directory.

    Raises:
        ValueError: It is none that a store has.
    """
    if store is None:
        return environment_url()
    return StoreUrl.read(store) if is_url(store) else None
