"""Values that programs put into messages, as JSON text: dates, decimals, models and more.

Arguments of tool calls hold whatever a tool takes. The easy mistake is to write what JSON does not
know by its `repr`: one that names an address in memory is another text in each process.
"""

from __future__ import annotations

import json
import os
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from langchain_rwkv_state.errors import UnsupportedContentError


def json_text(value: object, *, what: str, compact: bool = False) -> str:
    """Returns a value as JSON, what is no JSON in the form that pydantic gives it.

    Args:
        value: The value.
        what: What it is, for the message.
        compact: Whether no space stands between its parts, as models write calls of tools.

    Raises:
        UnsupportedContentError: Something in it has no such form.

    Example:
        >>> import datetime
        >>> json_text({"day": datetime.date(2026, 1, 2)}, what="The call")
        '{"day": "2026-01-02"}'
    """
    try:
        separators = (",", ":") if compact else None
        return json.dumps(value, ensure_ascii=False, default=_jsonable, separators=separators)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise UnsupportedContentError(
            f"{what} cannot be written as JSON ({error}): pass texts, numbers, lists, dicts with "
            "texts for keys, dates or pydantic models."
        ) from error


def _jsonable(value: object) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)  # their own order is another one in each process
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return to_jsonable_python(value)
