"""Turns what went wrong into OpenAI's errors: a status, and a body that says what and where.

A client library tries a 408, 409, 429 and 5xx again by itself, which ``x-should-retry`` decides
where it is set. The easy mistakes are to tell one tenant what belongs to another (a state that is
none of the tenant's is not found, whatever it is), and to take a mistake of ours for a client's: a
`ValueError` is one of the request's values only where these are checked, within `checking`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain_rwkv_state.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineError,
    RWKVStateError,
    SchemaError,
    SessionConflict,
    StateCorrupt,
    StateExpired,
    StateMismatch,
    StateNotFound,
    StoreError,
    StoreFull,
)

logger = logging.getLogger("langchain_rwkv_state.serve")

INVALID = "invalid_request_error"
SERVER = "server_error"

# The store's own words name references, which are no matter of a client's.
_LOST_RACE = (
    "Another turn of this conversation was faster, and nothing of this one is kept: send it again "
    'to go on from there, or with on_conflict: "wait", which queues behind the turns before it.'
)


class ApiError(Exception):
    """An error as a client is told of it.

    Args:
        status: HTTP's.
        message: What was wrong, with which value, and what to do.
        code: OpenAI's short word for it, such as ``model_not_found``.
        kind: OpenAI's ``type``.
        param: Which parameter it is about.
        headers: More of the answer's headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        kind: str = INVALID,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = dict(headers or {})

    @property
    def error(self) -> dict[str, Any]:
        """What stands under ``error`` in the body."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }


def unsupported(param: str, why: str) -> ApiError:
    """Returns the error for what this server cannot do."""
    return ApiError(
        400,
        f"{param} is not supported here: {why}",
        code="unsupported_parameter",
        param=param,
    )


_KNOWN: tuple[tuple[type[RWKVStateError], int, str, str, dict[str, str]], ...] = (
    (StateExpired, 404, INVALID, "expired", {}),
    (StateNotFound, 404, INVALID, "not_found", {}),
    (StateMismatch, 400, INVALID, "state_mismatch", {}),
    (SessionConflict, 409, INVALID, "conversation_conflict", {"x-should-retry": "false"}),
    (EngineBusy, 429, "requests", "engine_busy", {"retry-after": "1"}),
    (SchemaError, 400, INVALID, "invalid_json_schema", {}),
    (DeadlineExceeded, 504, SERVER, "deadline_exceeded", {"x-should-retry": "false"}),
    (EngineError, 503, SERVER, "engine_unavailable", {"retry-after": "5"}),
    (StoreFull, 507, SERVER, "store_full", {"x-should-retry": "false"}),
    (StateCorrupt, 500, SERVER, "state_corrupt", {"x-should-retry": "false"}),
    (StoreError, 503, SERVER, "store_unavailable", {"retry-after": "5"}),
)

_OF_THE_STORE = (StateCorrupt, StoreError, StoreFull)


def as_api_error(error: BaseException) -> ApiError:
    """Returns what a client is told of an error; what nobody expected is logged."""
    if isinstance(error, ApiError):
        return error
    for known, status, kind, code, headers in _KNOWN:
        if isinstance(error, known):
            if status >= 500:
                logger.warning("%s: %s", type(error).__name__, error)
            told = _LOST_RACE if known is SessionConflict else str(error)
            if isinstance(error, _OF_THE_STORE):  # it may tell where the store is, and what in it
                told = f"The server's store failed ({type(error).__name__}); its log says more."
            return ApiError(status, told, code=code, kind=kind, headers=headers)
    logger.error("An error that nobody expected", exc_info=error)
    return ApiError(
        500, f"The server failed ({type(error).__name__}); its log says more.", kind=SERVER
    )


@contextmanager
def checking() -> Iterator[None]:
    """Has a `ValueError` of its block told as what is wrong with the request.

    Such a block holds what checks a request's values: planning a call, looking up a name.

    Raises:
        ApiError: It is a 400, in the words of the `ValueError`.
    """
    try:
        yield
    except SchemaError:  # has a word of its own, wherever it is raised
        raise
    except ValueError as error:
        raise ApiError(400, str(error)) from error
