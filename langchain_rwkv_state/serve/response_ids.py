"""Names responses: an id stands for the state behind an answer, and holds no word of it.

An id is told in a stream's first event, before there is a state. So it is a name of its own, and
the store notes which state is held for it: two answers with one state have two ids, and a life
each. It also says when its time runs out, as far as that was known when it was made: with it an id
that ran out can be told from one that never was, without a list of the dead. The easy mistake is to
trust that time. A use of the state renews it, so whether a state is still held is asked first.
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass

from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.store import StateStore

_ID = re.compile(r"resp_([0-9a-f]{8})([0-9a-f]{32})")
_NEVER = 0xFFFFFFFF
_UNKEPT = 0


@dataclass(frozen=True)
class ResponseId:
    """The id of a response.

    Attributes:
        ends: The second at which its time runs out; 0 where nothing is kept for it.
        nonce: 32 hex digits that are nobody else's.

    Example:
        >>> str(ResponseId(255, "ab" * 16))
        'resp_000000ffabababababababababababababababab'
    """

    ends: int
    nonce: str

    @classmethod
    def new(cls, now: float, seconds: float | None) -> ResponseId:
        """Makes one.

        Args:
            now: The time.
            seconds: How long its state is kept; ``None`` where it is not.
        """
        ends = _UNKEPT if seconds is None else min(now + seconds, _NEVER)
        return cls(int(ends) if math.isfinite(ends) else _NEVER, secrets.token_hex(16))

    @classmethod
    def parse(cls, text: str) -> ResponseId | None:
        """Reads an id; ``None`` for a text that is none."""
        found = _ID.fullmatch(text)
        return None if found is None else cls(int(found[1], 16), found[2])

    def __str__(self) -> str:
        return f"resp_{self.ends:08x}{self.nonce}"

    @property
    def owner(self) -> str:
        """Who holds its state in the store."""
        return f"response:{self}"

    def gone(self, now: float) -> ApiError:
        """Returns what is said where its state is not held.

        Of one that is another tenant's the same is said as of one that never was.

        Args:
            now: The time.
        """
        if self.ends == _UNKEPT:
            return ApiError(
                404,
                f"The response '{self}' was not kept: it was asked for with store=false. Ask with "
                "store=true for one that can be gone on from.",
                code="not_found",
            )
        if self.ends != _NEVER and self.ends <= now:
            return ApiError(
                404,
                f"The time of the response '{self}' has run out, and its state is gone: begin anew "
                "with what was said.",
                code="expired",
            )
        return ApiError(
            404,
            f"There is no response '{self}': it was deleted, or never was.",
            code="not_found",
        )


def read_id(given: str, *, param: str | None = None) -> ResponseId:
    """Reads an id that a client sent.

    Args:
        given: The id.
        param: Where it was given; ``None`` for the path.

    Raises:
        ApiError: It is no id of a response.
    """
    known = ResponseId.parse(given)
    if known is None:
        raise ApiError(
            404 if param is None else 400,
            f"{given!r:.100} is no id of a response, which is 'resp_' and 40 hex digits: pass the "
            "id that an answer came with.",
            code="invalid_response_id",
            param=param,
        )
    return known


async def state_of(store: StateStore, given: str, now: float, *, param: str | None = None) -> str:
    """Returns the reference of the state that a response's id stands for.

    Args:
        store: The store of whoever asks.
        given: The id.
        now: The time.
        param: Where it was given; ``None`` for the path.

    Raises:
        ApiError: It is no id of a response, or nothing is held for it.
    """
    known = read_id(given, param=param)
    held = await store.akept(known.owner)
    if not held:
        error = known.gone(now)
        error.param = param
        raise error
    return held[-1]
