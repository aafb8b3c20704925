"""Tells which filed state stands for a history's turn, from what it began with and what was said.

Values only: nothing here asks a store or a model. An answer's text that fits is not enough: its
state must also have been read from the head that the turn began with, with the same unread
messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    BaseMessageChunk,
    message_chunk_to_message,
)

from langchain_rwkv_state.conversation.filings import EndedTurn, Filing
from langchain_rwkv_state.conversation.unread import as_unread, readable
from langchain_rwkv_state.prompt.markers import (
    Mark,
    hand_out,
    is_marker,
    message_digest,
    messages_digest,
    said_digests,
    without_markers,
)


@dataclass(frozen=True)
class Turn:
    """What a turn began with.

    Attributes:
        turn_id: Under which the model files, ``None`` for a turn that nobody began.
        base: The session's head.
        unread: The messages behind the head that no state covered.
        n_stored: How many there are in the store, where that is more: markers among them are left
            out, since nobody but the history itself may say what a model is to go on from.
        kept: The unread messages as they are kept, where a model cannot read them all.
    """

    turn_id: str | None
    base: str | None
    unread: tuple[BaseMessage, ...] = ()
    n_stored: int = 0
    kept: tuple[BaseMessage, ...] = ()

    @classmethod
    def begun(
        cls, turn_id: str, base: str | None, stored: Sequence[BaseMessage], session: str
    ) -> Turn:
        """Returns a turn that begins with the unread messages that a store holds of a session."""
        kept = without_markers(stored)
        return cls(turn_id, base, tuple(readable(kept, session)), len(stored), tuple(kept))

    @cached_property
    def _mark(self) -> Mark:
        return Mark(self.base, self.turn_id, len(self.unread))

    @property
    def messages(self) -> list[BaseMessage]:
        """The marker, then the unread messages."""
        return [hand_out(self._mark), *self.unread]

    @cached_property
    def unread_digest(self) -> str | None:
        """Digest of the unread messages, ``None`` where there are none."""
        return messages_digest(self.unread) if self.unread else None

    def ended(self, said: Sequence[BaseMessage]) -> EndedTurn:
        """Returns the turn as it ended.

        Args:
            said: What was said, the answer last. If the turn's marker leads it, it is left out
                together with the unread messages, and so is any other marker.
        """
        rest = list(said)
        if rest and is_marker(rest[0]) and self._leads(rest[1:]):
            rest = rest[1 + len(self.unread) :]
        rest = without_markers(rest)
        answer = rest[-1] if rest else None
        return EndedTurn(
            messages=tuple(as_unread(message) for message in rest),
            answer_digest=message_digest(answer) if isinstance(answer, AIMessage) else None,
            turn_id=self.turn_id,
            base=self.base,
            n_unread=self.n_stored,
            unread_digest=self.unread_digest,
            said=said_digests(rest),
            unread_said=said_digests(self.kept),
        )

    def _leads(self, rest: Sequence[BaseMessage]) -> bool:
        """Says whether the messages behind a marker begin with the unread ones."""
        return messages_digest(rest[: len(self.unread)]) == messages_digest(self.unread)


NOBODYS_TURN = Turn(turn_id=None, base=None)
"""For messages that are added without a turn having begun."""


def state_of_answer(ended: EndedTurn, filings: Sequence[Filing]) -> str | None:
    """Returns the one state that stands for a turn with its answer; ``None`` in any doubt.

    Args:
        ended: The turn.
        filings: What the model filed under the turn's id.
    """
    refs = {
        filing.ref
        for filing in filings
        if filing.text_digest == ended.answer_digest
        and filing.base == ended.base
        and filing.unread_digest == ended.unread_digest
    }
    return refs.pop() if len(refs) == 1 else None


def state_of_unread(ended: EndedTurn, filings: Sequence[Filing]) -> str | None:
    """Returns a state that stands for the unread messages with which a turn began.

    Args:
        ended: The turn.
        filings: What the model filed under the turn's id.
    """
    if ended.unread_digest is None:
        return None
    refs = (
        filing.unread_ref
        for filing in filings
        if filing.base == ended.base and filing.unread_digest == ended.unread_digest
    )
    return next((ref for ref in refs if ref is not None), None)


def as_message(item: object) -> BaseMessage:
    """Returns a whole message for whatever a chain gave: a parser of lists gives plain texts."""
    if isinstance(item, BaseMessageChunk):
        return message_chunk_to_message(item)
    return item if isinstance(item, BaseMessage) else AIMessage(str(item))
