"""Measures how much a model still knows: tells it facts, says other things, then asks."""

from langchain_rwkv_state.toolbox.recall.measure import SECTIONS, SectionName, measure
from langchain_rwkv_state.toolbox.recall.result import Point, Recall, Section, Series

__all__ = ["SECTIONS", "Point", "Recall", "Section", "SectionName", "Series", "measure"]
