"""Numbers, times and harmless texts, as views show them: the names of `words`, and nothing else."""

from langchain_rwkv_state.words import (
    ago,
    clock_time,
    counted,
    duration,
    in_one_line,
    plain,
    short,
    size,
    span,
    until,
)

__all__ = [
    "ago",
    "clock_time",
    "counted",
    "duration",
    "in_one_line",
    "plain",
    "short",
    "size",
    "span",
    "until",
]
