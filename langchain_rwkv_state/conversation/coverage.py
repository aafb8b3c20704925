"""Tells which of a graph's messages its thread's states stand for: `Coverage`, a value.

A thread keeps it in a field of its own beside the messages. It goes by what was said, never by a
message's place or id, so that whatever was edited, redacted or taken away is read again, from the
deepest state that stands for what is left of it. Nothing here asks a store or a model.
"""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from langchain_rwkv_state.errors import MarkerError
from langchain_rwkv_state.prompt.markers import STATE_KEY, said_digest
from langchain_rwkv_state.state import is_reference

FIELD = "rwkv_state"
"""Key of a thread's coverage in a graph's state."""

COVERED_MAX = 16
"""How many states are known of the messages that a thread holds."""

DROPPED_MAX = 24
"""How many of the dropped messages are known still."""

_SHORT_BYTES = 3  # whoever finds two messages of one digest has a message of his own dropped
_EVIDENCE = 8  # so many of a long transcript's last messages tell that it is the thread's
_EMPTY = "0" * 16


@dataclass(frozen=True)
class Covered:
    """A state that stands for the first messages of a thread.

    Attributes:
        count: How many messages, from the first that the thread holds on.
        ref: The state's reference; ``None`` for a new conversation, which has none.
        digest: Digest of those messages.
    """

    count: int
    ref: str | None
    digest: str


@dataclass(frozen=True)
class Coverage:
    """Which states stand for which of a thread's messages.

    Attributes:
        covered: From what stands for no message of the thread (the state behind what was dropped,
            if anything was) to the thread's last state.
        dropped: Digests of the last messages that the thread holds no more, oldest first.
    """

    covered: tuple[Covered, ...] = (Covered(0, None, _EMPTY),)
    dropped: tuple[str, ...] = ()

    @classmethod
    def of(cls, field: object) -> Coverage:
        """Reads a thread's field; ``None`` is that of a new thread.

        Raises:
            MarkerError: It is something else than `to_field` gave.
        """
        if field is None:
            return cls()
        try:
            covered = tuple(Covered(*entry) for entry in field["covered"])  # type: ignore[index]
            raw = base64.b64decode(field["dropped"], validate=True)  # type: ignore[index]
            places = range(0, len(raw), _SHORT_BYTES)
            dropped = tuple(raw[at : at + _SHORT_BYTES].hex() for at in places)
            coverage = cls(covered, dropped)
            sound = _is_sound(coverage)
        except (TypeError, ValueError, KeyError):
            sound = False
        if not sound:
            raise MarkerError(
                f"The thread's field {FIELD!r} holds {field!r:.200}, which is not what this "
                "package wrote there: leave that field of a graph's state to it."
            )
        return coverage

    def to_field(self) -> dict[str, Any]:
        """Returns the form that a checkpoint keeps: numbers and texts alone."""
        return {
            "covered": [[one.count, one.ref, one.digest] for one in self.covered],
            "dropped": base64.b64encode(b"".join(map(bytes.fromhex, self.dropped))).decode(),
        }

    @property
    def base(self) -> str | None:
        """Reference of the state behind what the thread holds no more."""
        return self.covered[0].ref

    def standing(self, messages: Sequence[BaseMessage]) -> Iterator[Covered]:
        """Gives the states that stand for the first of these messages, the deepest first.

        Args:
            messages: The thread's, with no marker among them.
        """
        chain = _chain([said_digest(message) for message in messages])
        for one in reversed(self.covered):
            if one.count < len(chain) and chain[one.count] == one.digest:
                yield one

    def and_answered(
        self, messages: Sequence[BaseMessage], answer: AIMessage, ref: str
    ) -> Coverage:
        """Returns the coverage once a state stands for all the messages and the answer to them.

        States that stand for something else by now are no longer in it.
        """
        digests = [said_digest(message) for message in (*messages, answer)]
        covered = [*reversed(list(self.standing(messages)))]
        covered.append(Covered(len(digests), ref, _chain(digests)[-1]))
        if len(covered) > COVERED_MAX:
            del covered[_least_missed(covered)]
        return replace(self, covered=tuple(covered))

    def without_repeats(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Returns a thread's messages without those that a client sent once more.

        Args:
            messages: The thread's, with no marker among them.

        Warns:
            UserWarning: There are turns of this thread among the new messages that do not lead to
                its end: they are read once more.
        """
        own = max(next(self.standing(messages)).count, self._own(messages))
        held, new = list(messages[:own]), list(messages[own:])
        return [*held, *new[self._repeated(held, new) :]]

    def moved_on(self, messages: Sequence[BaseMessage], *, keep_last: int) -> tuple[Coverage, int]:
        """Lets a thread drop messages that its states stand for.

        Args:
            messages: The thread's.
            keep_last: How many covered messages it keeps at least.

        Returns:
            The coverage of the rest; and how many of the first messages are dropped.
        """
        standing = list(reversed(list(self.standing(messages))))
        left = standing[-1].count - keep_last
        bases = [one for one in standing if one.count <= left and not _waits(messages, one.count)]
        bases = bases or standing[:1]
        # A result without its call is nothing that a user, or another model, can read.
        whole = [one for one in bases if one.count and not _is_result(messages, one.count)]
        base = (whole if keep_last and whole else bases)[-1]
        digests = [said_digest(message) for message in messages]
        chain = _chain(digests[base.count :])
        covered = tuple(
            Covered(one.count - base.count, one.ref, chain[one.count - base.count])
            for one in standing
            if one.count >= base.count
        )
        dropped = (*self.dropped, *map(_shortened, digests[: base.count]))
        return Coverage(covered, dropped[-DROPPED_MAX:]), base.count

    def _own(self, messages: Sequence[BaseMessage]) -> int:
        """Returns how many of the first messages the thread surely had before this turn.

        Its own answers carry their references, and stand where they stood or, if something was
        removed, before that; copies that a client sent stand behind. Without this, what is left of
        a thread would look like such copies.
        """
        places = {one.ref: one.count for one in self.covered}
        end = 0
        for at, message in enumerate(messages):
            if at < places.pop(str(message.response_metadata.get(STATE_KEY)), 0):
                end = at + 1
        return end

    def _repeated(self, held: Sequence[BaseMessage], new: Sequence[BaseMessage]) -> int:
        """Returns how many of the first new messages were told already.

        They lead up to the thread's end, so that an answer stands last among them: a prompt's
        examples, which come back at each turn, do not. A client that shows no calls of tools
        leaves these out.
        """
        shorts = [_shortened(said_digest(message)) for message in new]
        answers = [at for at, one in enumerate(new) if isinstance(one, AIMessage)]
        # What the thread holds stays in its place where it is sent with the ids that it has there;
        # without them it comes once more, behind what was dropped.
        every = [*self.dropped, *(_shortened(said_digest(message)) for message in held)]
        for at in reversed(answers):
            if any(self._leads_up(shorts[: at + 1], known) for known in (every, self.dropped)):
                return at + 1
        if any(at and shorts[at] in every and shorts[at - 1] in every for at in answers):
            warnings.warn(
                "Some of these messages are turns that the thread was told already, but they do "
                "not go on from its end: all are read again, as they are given. Send only new "
                "messages, or the thread as it was; to go on from an earlier place, pass the "
                "checkpoint_id of that place.",
                stacklevel=2,
            )
        return 0

    def _leads_up(self, some: Sequence[str], known: Sequence[str]) -> bool:
        """Says whether messages lead up to the last of the known ones, with others left out."""
        if not known or some[-1] != known[-1]:
            return False
        rest = iter(known)
        all_known = len(self.dropped) < DROPPED_MAX
        return all(one in rest for one in (some if all_known else some[-_EVIDENCE:]))


def _least_missed(covered: Sequence[Covered]) -> int:
    """Returns which state to forget, so that they lie the farther apart the older they are."""
    end = covered[-1].count

    def missed(place: int) -> float:
        before, this, behind = (one.count for one in covered[place - 1 : place + 2])
        return (behind - before) / (end - this)

    return min(range(1, len(covered) - 1), key=missed)


def _is_sound(coverage: Coverage) -> bool:
    counts = [one.count for one in coverage.covered]
    return (
        bool(counts)
        and counts[0] == 0
        and all(isinstance(count, int) for count in counts)
        and counts == sorted(counts)
        and all(one.ref is None or is_reference(one.ref) for one in coverage.covered)
        and all(isinstance(one.digest, str) for one in coverage.covered)
    )


def _is_result(messages: Sequence[BaseMessage], at: int) -> bool:
    return at < len(messages) and isinstance(messages[at], ToolMessage)


def _waits(messages: Sequence[BaseMessage], at: int) -> bool:
    """Says whether calls right before a place have no result: a graph may still answer them."""
    before = messages[at - 1] if at else None
    calls = isinstance(before, AIMessage) and (before.tool_calls or before.invalid_tool_calls)
    return bool(calls) and not _is_result(messages, at)


def _shortened(digest: str) -> str:
    return digest[: 2 * _SHORT_BYTES]


def _chain(digests: Sequence[str]) -> list[str]:
    """Returns the digest of no message, of the first, of the first two, and so on."""
    chain = [_EMPTY]
    for digest in digests:
        chain.append(hashlib.sha256((chain[-1] + digest).encode()).hexdigest()[: len(_EMPTY)])
    return chain
