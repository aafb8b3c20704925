"""Keeps states of what was read before, so that no chain reads it again."""

from langchain_rwkv_state.prefix_cache.cache import (
    DIRECTORY_VARIABLE,
    PrefixStateCache,
    default_cache,
)
from langchain_rwkv_state.prefix_cache.disk_tier import default_cache_directory
from langchain_rwkv_state.prefix_cache.entries import CachedState, Hit, Namespace, hidden_salt
from langchain_rwkv_state.prefix_cache.prefix import Caching
from langchain_rwkv_state.prefix_cache.stats import CacheStats, Explanation

__all__ = [
    "DIRECTORY_VARIABLE",
    "CacheStats",
    "CachedState",
    "Caching",
    "Explanation",
    "Hit",
    "Namespace",
    "PrefixStateCache",
    "default_cache",
    "default_cache_directory",
    "hidden_salt",
]
