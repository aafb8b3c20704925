"""The prefix cache: states of what was read before, so that no chain reads it again."""

from langchain_rwkv_state.prefix_cache.cache import (
    DIRECTORY_VARIABLE,
    PrefixStateCache,
    default_cache,
)
from langchain_rwkv_state.prefix_cache.disk import default_cache_directory
from langchain_rwkv_state.prefix_cache.policy import marks
from langchain_rwkv_state.prefix_cache.records import (
    CacheStats,
    Explanation,
    Hit,
    Kept,
    Root,
    hidden_salt,
)

__all__ = [
    "DIRECTORY_VARIABLE",
    "CacheStats",
    "Explanation",
    "Hit",
    "Kept",
    "PrefixStateCache",
    "Root",
    "default_cache",
    "default_cache_directory",
    "hidden_salt",
    "marks",
]
