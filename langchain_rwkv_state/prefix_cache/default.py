"""The process's own prefix cache, made at first use."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from langchain_rwkv_state._registry import of_process
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.prefix_cache.cache import PrefixStateCache
from langchain_rwkv_state.prefix_cache.disk_tier import default_cache_directory
from langchain_rwkv_state.store.schema import DATABASE

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

DIRECTORY_VARIABLE = "RWKV_PREFIX_CACHE_DIR"


def default_cache() -> PrefixStateCache:
    """Returns the process's own cache.

    It lives in memory; with ``$RWKV_PREFIX_CACHE_DIR`` set, that directory is its disk tier.
    Without it, what ``rwkv-state warm`` pinned in the user's own directory is found, and
    nothing is kept there: nobody asked this process to. Set and empty, the variable switches that
    off too.
    """
    return of_process("prefix cache", _usual)


def _usual() -> PrefixStateCache:
    named = os.environ.get(DIRECTORY_VARIABLE)
    warmed = default_cache_directory()
    # Not Path.exists: of a directory that may not be looked into it raises, and no answer shall
    # fail for what was never asked for.
    if named is None and os.path.exists(warmed / DATABASE):  # noqa: PTH110
        return _reading_or_none(warmed)
    return PrefixStateCache(disk=named or None)


def _reading_or_none(directory: Path) -> PrefixStateCache:
    """Returns a cache that reads a directory, in memory alone where there is something else."""
    try:
        return PrefixStateCache.reading(directory)
    except StoreError as error:
        logger.warning("What was warmed is not used: %s", error)
        return PrefixStateCache()
