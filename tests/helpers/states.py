"""Makes small random states for tests, and a clock that tests can set."""

from langchain_rwkv_state.testing.states import (
    DAY,
    LAYOUT,
    Reader,
    SetClock,
    chat,
    head_of,
    random_state,
    turns,
)

__all__ = ["DAY", "LAYOUT", "Reader", "SetClock", "chat", "head_of", "random_state", "turns"]
