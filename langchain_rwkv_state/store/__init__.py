"""Stores of states and sessions: the port, and what implements it."""

from langchain_rwkv_state.store.base import (
    TTL,
    CheckReport,
    Codec,
    Filing,
    LogEntry,
    LogKind,
    SessionInfo,
    StateStore,
    StoreStats,
)
from langchain_rwkv_state.store.disk import DiskStateStore, default_directory
from langchain_rwkv_state.store.memory import MemoryStateStore

__all__ = [
    "TTL",
    "CheckReport",
    "Codec",
    "DiskStateStore",
    "Filing",
    "LogEntry",
    "LogKind",
    "MemoryStateStore",
    "SessionInfo",
    "StateStore",
    "StoreStats",
    "default_directory",
]
