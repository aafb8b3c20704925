"""How much a model still knows: facts told, other things said, and then the question."""

from langchain_rwkv_state.recall.result import Point, Recall, Section, Series

__all__ = ["Point", "Recall", "Section", "Series"]
