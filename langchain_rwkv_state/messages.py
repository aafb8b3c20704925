"""Makes, finds and leaves out state markers, for those who handle messages."""

from langchain_rwkv_state.prompt.markers import is_marker, marker, read_marker, without_markers

__all__ = ["is_marker", "marker", "read_marker", "without_markers"]
