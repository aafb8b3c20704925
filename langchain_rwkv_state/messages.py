"""State markers, as users of messages need them: make one, find one, leave them out."""

from langchain_rwkv_state.prompt.markers import is_marker, marker, read_marker, without_markers

__all__ = ["is_marker", "marker", "read_marker", "without_markers"]
