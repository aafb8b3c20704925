"""Stores of states and sessions: the port, and what implements it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.store.base import StateStore
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.disk import DiskStateStore, default_directory
from langchain_rwkv_state.store.events import SessionEvent, watch
from langchain_rwkv_state.store.memory import MemoryStateStore
from langchain_rwkv_state.store.records import (
    Backup,
    CheckReport,
    Codec,
    LogEntry,
    LogKind,
    Redaction,
    SessionInfo,
    StoreStats,
    TranscriptTurn,
)
from langchain_rwkv_state.store.settings import check_session
from langchain_rwkv_state.store.urls import open_store

if TYPE_CHECKING:
    from langchain_rwkv_state.store.redis.store import RedisStateStore

follow = watch  # its name before

__all__ = [
    "TTL",
    "Backup",
    "CheckReport",
    "Codec",
    "DiskStateStore",
    "LogEntry",
    "LogKind",
    "MemoryStateStore",
    "Redaction",
    "RedisStateStore",
    "SessionEvent",
    "SessionInfo",
    "StateStore",
    "StoreStats",
    "TranscriptTurn",
    "check_session",
    "default_directory",
    "follow",
    "open_store",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Imports what few programs need when it is first asked for."""
    if name != "RedisStateStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = import_module(f"{__name__}.redis.store").RedisStateStore
    return value
