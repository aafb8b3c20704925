"""Puts an answer's pieces together as items: its thought, its text, its calls.

A streamed answer and a whole one go through here alike, so that they say the same. An item knows
the events that open and close it, and nothing of how events are written.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langchain_rwkv_state.serve.answers import CallPiece, Piece

Event: TypeAlias = tuple[str, Mapping[str, Any]]
"""An event's name, and what it says."""

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class Item(ABC):
    """An item of an answer, as far as it came.

    Args:
        prefix: Begins its id.
        index: Its place in the answer.
        events: Begins the names of the events of more of it, and of all of it.
    """

    def __init__(self, prefix: str, index: int, events: str) -> None:
        self.id = f"{prefix}_{secrets.token_hex(16)}"
        self.index = index
        self.delta = f"{events}.delta"
        self._done = f"{events}.done"
        self._parts: list[str] = []
        self.place: dict[str, Any] = {"item_id": self.id, "output_index": index}

    @property
    def text(self) -> str:
        """What it says so far."""
        return "".join(self._parts)

    def add(self, text: str) -> None:
        """Takes more of it."""
        self._parts.append(text)

    @abstractmethod
    def document(self, status: Status) -> dict[str, Any]:
        """Returns it as the API writes it."""

    @abstractmethod
    def _inner_opening(self) -> list[Event]:
        """Returns the events between its beginning and the first of its text."""

    @abstractmethod
    def _inner_closing(self) -> list[Event]:
        """Returns the events between the last of its text and its end."""

    def opening(self) -> list[Event]:
        """Returns the events that begin it."""
        added = {"output_index": self.index, "item": self.document("in_progress")}
        return [("response.output_item.added", added), *self._inner_opening()]

    def closing(self, status: Status) -> list[Event]:
        """Returns the events that end it."""
        done = {"output_index": self.index, "item": self.document(status)}
        return [*self._inner_closing(), ("response.output_item.done", done)]


class Kind(NamedTuple):
    """A kind of items that hold one text.

    Attributes:
        prefix: Begins their ids.
        fields: What they all say.
        holds: The field with their text's part.
        part: The part's type.
        events: Begins the names of the text's events.
        about: Begins the names of the part's events.
    """

    prefix: str
    fields: Mapping[str, Any]
    holds: str
    part: str
    events: str
    about: str


MESSAGE: Final = Kind(
    "msg",
    {"type": "message", "role": "assistant"},
    "content",
    "output_text",
    "response.output_text",
    "response.content_part",
)
"""What is said in words."""
THOUGHT: Final = Kind(
    "rs",
    {"type": "reasoning", "summary": []},
    "content",
    "reasoning_text",
    "response.reasoning_text",
    "response.content_part",
)
"""What was thought before, told as what it is."""
SUMMARY: Final = Kind(
    "rs",
    {"type": "reasoning"},
    "summary",
    "summary_text",
    "response.reasoning_summary_text",
    "response.reasoning_summary_part",
)
"""What was thought before, told as a summary, which is what most clients read."""


class TextItem(Item):
    """An item that holds one text.

    Args:
        kind: Which text.
        index: Its place in the answer.
    """

    def __init__(self, kind: Kind, index: int) -> None:
        super().__init__(kind.prefix, index, kind.events)
        self.kind = kind
        self.logprobs: list[Mapping[str, Any]] = []
        self.place[f"{kind.holds}_index"] = 0

    def document(self, status: Status) -> dict[str, Any]:
        """Returns it as the API writes it."""
        told = [] if status == "in_progress" else [self._part(self.text, self.logprobs)]
        return {"id": self.id, **self.kind.fields, "status": status, self.kind.holds: told}

    def _inner_opening(self) -> list[Event]:
        return [(f"{self.kind.about}.added", {**self.place, "part": self._part("", [])})]

    def _inner_closing(self) -> list[Event]:
        text = self.text
        said: dict[str, Any] = {**self.place, "text": text}
        if self.kind is MESSAGE:
            said["logprobs"] = self.logprobs
        part = {**self.place, "part": self._part(text, self.logprobs)}
        return [(self._done, said), (f"{self.kind.about}.done", part)]

    def _part(self, text: str, logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self.kind.part, "text": text}
        return part | {"annotations": [], "logprobs": logprobs} if self.kind is MESSAGE else part


class CallItem(Item):
    """A call of a tool.

    Args:
        piece: The first of it.
        index: Its place in the answer.
    """

    def __init__(self, piece: CallPiece, index: int) -> None:
        super().__init__("fc", index, "response.function_call_arguments")
        self.number = piece.index
        self._call_id = piece.id or f"call_{secrets.token_hex(16)}"
        self._name = piece.name or ""

    def document(self, status: Status) -> dict[str, Any]:
        """Returns it as the API writes it."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "" if status == "in_progress" else self.text,
        }

    def _inner_opening(self) -> list[Event]:
        return []

    def _inner_closing(self) -> list[Event]:
        return [(self._done, {**self.place, "name": self._name, "arguments": self.text})]


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
        self._thinks = SUMMARY if summarised else THOUGHT
        self.items: list[Item] = []

    @property
    def last(self) -> Item | None:
        """The item that is being made."""
        return self.items[-1] if self.items else None

    def take(self, piece: Piece) -> Sequence[tuple[Item, str, bool]]:
        """Adds a piece; returns what of it each item took, and whether the item is new."""
        found = []
        if piece.thought:
            found.append(self._add(self._text_item(self._thinks), piece.thought))
        if piece.text:
            item = self._text_item(MESSAGE)
            if piece.logprobs is not None:
                item.logprobs += piece.logprobs["content"]
            found.append(self._add(item, piece.text))
        if piece.call is not None:
            found.append(self._add(self._call_item(piece.call), piece.call.arguments))
        return found

    def begin_empty(self) -> Item | None:
        """Begins a message where nothing at all was said: clients look for one."""
        return None if self.items else self._add(self._text_item(MESSAGE), "")[0]

    def documents(self, last: Status = "completed") -> list[dict[str, Any]]:
        """Returns all items as the API writes them.

        Args:
            last: How far the last one came.
        """
        end = len(self.items) - 1
        return [
            item.document(last if at == end else "completed") for at, item in enumerate(self.items)
        ]

    def _text_item(self, kind: Kind) -> TextItem:
        """Returns the item that more text of a kind belongs to."""
        last = self.last
        if isinstance(last, TextItem) and last.kind is kind:
            return last
        return TextItem(kind, len(self.items))

    def _call_item(self, call: CallPiece) -> CallItem:
        """Returns the item that a piece of a call belongs to."""
        last = self.last
        if isinstance(last, CallItem) and last.number == call.index:
            return last
        return CallItem(call, len(self.items))

    def _add(self, item: Item, text: str) -> tuple[Item, str, bool]:
        is_new = item is not self.last
        if is_new:
            self.items.append(item)
        item.add(text)
        return item, text, is_new
