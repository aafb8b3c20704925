"""Puts an answer's pieces together as items: its thought, its text, its calls.

A streamed answer and a whole one go through here alike, so that they say the same. An item knows
the events that open and close it, and nothing of how events are written.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from langchain_rwkv_state.serve.answers import CallPiece, Piece

Event: TypeAlias = tuple[str, Mapping[str, Any]]
"""An event's name, and what it says."""

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class Item(ABC):
    """An item of an answer, as far as it came.

    Args:
        index: Its place in the answer.
    """

    prefix: ClassVar[str]
    """Begins its id."""
    delta: ClassVar[str]
    """Names the event of more of it."""

    def __init__(self, index: int) -> None:
        self.id = f"{self.prefix}_{secrets.token_hex(16)}"
        self.index = index
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """What it says so far."""
        return "".join(self._parts)

    def add(self, text: str) -> None:
        """Takes more of it."""
        self._parts.append(text)

    @property
    def place(self) -> dict[str, Any]:
        """Says in events which item it is, and which part of it."""
        return {"item_id": self.id, "output_index": self.index}

    @abstractmethod
    def document(self, status: Status) -> dict[str, Any]:
        """Returns it as the API writes it."""

    def opening(self) -> list[Event]:
        """Returns the events that begin it."""
        added = {"output_index": self.index, "item": self.document("in_progress")}
        return [("response.output_item.added", added)]

    def closing(self, status: Status) -> list[Event]:
        """Returns the events that end it."""
        done = {"output_index": self.index, "item": self.document(status)}
        return [("response.output_item.done", done)]


class Message(Item):
    """What is said in words."""

    prefix = "msg"
    delta = "response.output_text.delta"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.logprobs: list[dict[str, Any]] = []

    @property
    def place(self) -> dict[str, Any]:
        return {**super().place, "content_index": 0}

    def document(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def opening(self) -> list[Event]:
        return [
            *super().opening(),
            ("response.content_part.added", {**self.place, "part": self._part()}),
        ]

    def closing(self, status: Status) -> list[Event]:
        said = {**self.place, "text": self.text, "logprobs": self.logprobs}
        return [
            ("response.output_text.done", said),
            ("response.content_part.done", {**self.place, "part": self._part()}),
            *super().closing(status),
        ]

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        }


class Call(Item):
    """A call of a tool.

    Args:
        index: Its place in the answer.
        piece: The first of it.
    """

    prefix = "fc"
    delta = "response.function_call_arguments.delta"

    def __init__(self, index: int, piece: CallPiece) -> None:
        super().__init__(index)
        self.number = piece.index
        self._call_id = piece.id or f"call_{secrets.token_hex(16)}"
        self._name = piece.name or ""

    def document(self, status: Status) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }

    def closing(self, status: Status) -> list[Event]:
        said = {**self.place, "name": self._name, "arguments": self.text}
        return [("response.function_call_arguments.done", said), *super().closing(status)]


class Thought(Item):
    """What was thought before the answer, told as what it is."""

    prefix = "rs"
    delta = "response.reasoning_text.delta"

    @property
    def place(self) -> dict[str, Any]:
        return {**super().place, "content_index": 0}

    def document(self, status: Status) -> dict[str, Any]:
        told = {} if status == "in_progress" else {"content": [self._part()]}
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], **told}

    def opening(self) -> list[Event]:
        added = {**self.place, "part": self._part()}
        return [*super().opening(), ("response.content_part.added", added)]

    def closing(self, status: Status) -> list[Event]:
        return [
            ("response.reasoning_text.done", {**self.place, "text": self.text}),
            ("response.content_part.done", {**self.place, "part": self._part()}),
            *super().closing(status),
        ]

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}


class Summary(Item):
    """What was thought before the answer, told as a summary, which is what most clients read."""

    prefix = "rs"
    delta = "response.reasoning_summary_text.delta"

    @property
    def place(self) -> dict[str, Any]:
        return {**super().place, "summary_index": 0}

    def document(self, status: Status) -> dict[str, Any]:
        told = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": told}

    def opening(self) -> list[Event]:
        added = {**self.place, "part": self._part()}
        return [*super().opening(), ("response.reasoning_summary_part.added", added)]

    def closing(self, status: Status) -> list[Event]:
        return [
            ("response.reasoning_summary_text.done", {**self.place, "text": self.text}),
            ("response.reasoning_summary_part.done", {**self.place, "part": self._part()}),
            *super().closing(status),
        ]

    def _part(self) -> dict[str, Any]:
        return {"type": "summary_text", "text": self.text}


class Output:
    """The items of an answer.

    Args:
        summarised: Whether a thought is told as a summary.

    Example:
        >>> output = Output()
        >>> _ = output.take(Piece("Good "))
        >>> [(item.text, text, opened) for item, text, opened in output.take(Piece("morning."))]
        [('Good morning.', 'morning.', False)]
    """

    def __init__(self, *, summarised: bool = False) -> None:
        self._thinks: type[Item] = Summary if summarised else Thought
        self.items: list[Item] = []

    @property
    def last(self) -> Item | None:
        """The item that is being made."""
        return self.items[-1] if self.items else None

    def take(self, piece: Piece) -> Sequence[tuple[Item, str, bool]]:
        """Adds a piece; returns what of it each item took, and whether the item is new."""
        found = []
        if piece.thought:
            found.append(self._add(piece.thought, self._thinks))
        if piece.text:
            found.append(self._add(piece.text, Message))
        if piece.call is not None:
            found.append(self._add_call(piece.call))
        return found

    def begin_empty(self) -> Item | None:
        """Begins a message where nothing at all was said: clients look for one."""
        return None if self.items else self._begin(Message(0))

    def documents(self, last: Status = "completed") -> list[dict[str, Any]]:
        """Returns all items as the API writes them.

        Args:
            last: How far the last one came.
        """
        end = len(self.items) - 1
        return [
            item.document(last if at == end else "completed") for at, item in enumerate(self.items)
        ]

    def _add(self, text: str, kind: type[Item]) -> tuple[Item, str, bool]:
        last = self.last
        is_new = type(last) is not kind
        item = self._begin(kind(len(self.items))) if last is None or is_new else last
        item.add(text)
        return item, text, is_new

    def _add_call(self, call: CallPiece) -> tuple[Item, str, bool]:
        last = self.last
        is_new = not (isinstance(last, Call) and last.number == call.index)
        item = self._begin(Call(len(self.items), call)) if last is None or is_new else last
        item.add(call.arguments)
        return item, call.arguments, is_new

    def _begin(self, item: Item) -> Item:
        self.items.append(item)
        return item
