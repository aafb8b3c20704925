"""How much a model still knows: facts told, other things said, and then the question."""

from langchain_rwkv_state.toolbox.recall.measure import SECTIONS, SectionName, measure
from langchain_rwkv_state.toolbox.recall.result import Point, Recall, Section, Series

__all__ = ["SECTIONS", "Point", "Recall", "Section", "SectionName", "Series", "measure"]
