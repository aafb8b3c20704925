"""Writes a response, whole or as the events of a stream, in the order that clients rely on.

What is said once for every token is a prefix, a text and a number: a response, with its tools and
instructions, is written at the beginning and at the end alone. The easy mistake is to let a stream
break off: a client of this API waits for a last event, and takes anything else for an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_rwkv_state.serve.answers import Answered, Piece
from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.replies import dumps
from langchain_rwkv_state.serve.response_output import (
    MESSAGE,
    Event,
    Item,
    Output,
    Status,
    TextItem,
)


class ResponseDocument:
    """A response as the API writes it.

    Args:
        response_id: Its id.
        created: When it was asked for, in Unix time.
        model: What clients call the model.
        echo: What it repeats of its request.
    """

    def __init__(
        self, response_id: str, created: float, model: str, echo: Mapping[str, Any]
    ) -> None:
        self._head = {
            "id": response_id,
            "object": "response",
            "created_at": int(created),
            "model": model,
        }
        self._echo = echo

    def begun(self) -> dict[str, Any]:
        """Returns it before anything was said."""
        return self._whole("in_progress", [])

    def ended(self, output: Output, answered: Answered) -> dict[str, Any]:
        """Returns it with its answer.

        Args:
            output: What was said.
            answered: How it ended.
        """
        cut = answered.finish_reason == "length"
        return self._whole(
            "incomplete" if cut else "completed",
            output.documents("incomplete" if cut else "completed"),
            incomplete={"reason": "max_output_tokens"} if cut else None,
            usage=_usage(answered),
        )

    def failed(self, output: Output, error: ApiError) -> dict[str, Any]:
        """Returns it with what was said until it failed.

        Args:
            output: What was said.
            error: Why it failed.
        """
        told = {"code": error.code or "server_error", "message": error.message}
        return self._whole("failed", output.documents("incomplete"), error=told)

    def _whole(
        self,
        status: str,
        output: list[dict[str, Any]],
        *,
        error: Mapping[str, Any] | None = None,
        incomplete: Mapping[str, Any] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "error": error,
            "incomplete_details": incomplete,
            "output": output,
            "usage": usage,
            **self._echo,
        }


class ResponseEvents:
    """The events of a stream, as bytes.

    Args:
        document: Writes the response.
        output: Puts the answer together.
    """

    def __init__(self, document: ResponseDocument, output: Output) -> None:
        self._document = document
        self._output = output
        self._count = 0
        self._open: Item | None = None
        self._head = self._tail = b""

    def begin(self) -> bytes:
        """Returns the events before any of the answer."""
        body = dumps(self._document.begun())
        return b"".join(
            b'event: %b\ndata: {"type":"%b","response":%b%b' % (name, name, body, self._number())
            for name in (b"response.created", b"response.in_progress")
        )

    def piece(self, piece: Piece) -> bytes:
        """Returns the events of a piece of the answer."""
        found = []
        for item, text, is_new in self._output.take(piece):
            if is_new:
                found += [self._close("completed"), self._begin(item)]
            if text:
                found += [self._head, dumps(text)]
                if piece.logprobs is not None:
                    found += [b',"logprobs":', dumps(piece.logprobs["content"]), self._number()]
                else:
                    found += [self._tail, self._number()]
        return b"".join(found)

    def end(self, answered: Answered) -> bytes:
        """Returns the events that end the answer.

        Args:
            answered: How it ended.
        """
        cut = answered.finish_reason == "length"
        empty = self._output.begin_empty()
        begun = b"" if empty is None else self._begin(empty)
        closed = self._close("incomplete" if cut else "completed")
        name = "response.incomplete" if cut else "response.completed"
        last = {"response": self._document.ended(self._output, answered)}
        return begun + closed + self._event(name, last)

    def fail(self, error: ApiError) -> bytes:
        """Returns the event that ends a stream whose answer failed.

        Args:
            error: Why it did.
        """
        failed = {"response": self._document.failed(self._output, error)}
        return self._event("response.failed", failed)

    def _begin(self, item: Item) -> bytes:
        self._open = item
        fields = dumps({"type": item.delta, **item.place})[:-1]
        self._head = b'event: %b\ndata: %b,"delta":' % (item.delta.encode(), fields)
        says = isinstance(item, TextItem) and item.kind is MESSAGE
        self._tail = b',"logprobs":[]' if says else b""  # clients expect some of any text
        return self._events(item.opening())

    def _close(self, status: Status) -> bytes:
        item, self._open = self._open, None
        return b"" if item is None else self._events(item.closing(status))

    def _events(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._event(name, fields) for name, fields in events)

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        body = dumps({"type": name, **fields})[:-1]
        return b"event: %b\ndata: %b%b" % (name.encode(), body, self._number())

    def _number(self) -> bytes:
        """Returns what ends an event: its number."""
        number, self._count = self._count, self._count + 1
        return b',"sequence_number":%d}\n\n' % number


def _usage(answered: Answered) -> dict[str, Any]:
    return {
        "input_tokens": answered.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": answered.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": answered.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": answered.reasoning_tokens},
        "total_tokens": answered.prompt_tokens + answered.completion_tokens,
    }
