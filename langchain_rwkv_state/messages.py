"""State markers, as users of messages need them: make one, find one, leave them out, store them."""

from langchain_rwkv_state.prompt.markers import (
    STATE_KEY,
    is_marker,
    marker,
    message_from_json,
    message_to_json,
    read_marker,
    without_markers,
)

__all__ = [
    "STATE_KEY",
    "is_marker",
    "marker",
    "message_from_json",
    "message_to_json",
    "read_marker",
    "without_markers",
]
