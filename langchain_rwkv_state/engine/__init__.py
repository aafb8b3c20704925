"""Answers many requests at once, by one worker that owns a runtime."""

from langchain_rwkv_state.engine.callbacks import in_own_context
from langchain_rwkv_state.engine.constraints import check_constraint
from langchain_rwkv_state.engine.engine import Engine, Limits
from langchain_rwkv_state.engine.request import (
    MOST_TOP_LOGPROBS,
    Delta,
    Done,
    Event,
    FinishReason,
    Request,
    Sampling,
    Thought,
    TokenLogprob,
)
from langchain_rwkv_state.engine.request_handle import RequestHandle
from langchain_rwkv_state.engine.stats import EngineStats

__all__ = [
    "MOST_TOP_LOGPROBS",
    "Delta",
    "Done",
    "Engine",
    "EngineStats",
    "Event",
    "FinishReason",
    "Limits",
    "Request",
    "Sampling",
    "Thought",
    "TokenLogprob",
    "RequestHandle",
    "check_constraint",
    "in_own_context",
]
