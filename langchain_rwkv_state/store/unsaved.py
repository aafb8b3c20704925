"""Turns that a history could not store: held in memory until the store takes them.

Whoever reads a session next, through whatever history object, finds here what an earlier turn left
behind, since the store is what they share. It is not a queue that empties itself: a history takes
the turns, stores them, or notes them again. The easy mistake is to count on it across processes: a
turn noted here and not yet stored ends with the process.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class EndedTurn:
    """What was said in a turn, with what tells which filed state stands for it.

    Attributes:
        messages: As JSON texts.
        answer_digest: Digest of the answer's text, ``None`` where no answer stands last.
        turn_id: Under which the model filed, ``None`` for a turn that nobody began.
        base: The head that the turn began with.
        n_unread: How many unread messages it began with.
        unread_digest: Their digest, ``None`` for none.
        said: Digests of what was said, for the session's log.
        unread_said: The same of the unread messages.
    """

    messages: tuple[str, ...]
    answer_digest: str | None
    turn_id: str | None
    base: str | None
    n_unread: int
    unread_digest: str | None
    said: tuple[str, ...] = ()
    unread_said: tuple[str, ...] = ()


class UnsavedTurns:
    """Holds ended turns by session. Every store does; nothing in here can fail."""

    @property
    def _unsaved(self) -> dict[str, deque[EndedTurn]]:
        """The turns; an implementation need not make room for them in its constructor."""
        held: dict[str, deque[EndedTurn]] = self.__dict__.setdefault("_unsaved_turns", {})
        return held

    def note_unsaved(self, session: str, turn: EndedTurn) -> None:
        """Holds a turn that could not be stored, behind those already held for the session."""
        self._unsaved.setdefault(session, deque()).append(turn)

    def take_unsaved(self, session: str) -> list[EndedTurn]:
        """Hands over the turns held for a session, oldest first, and holds them no more."""
        return list(self._unsaved.pop(session, ()))
