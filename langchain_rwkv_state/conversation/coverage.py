"""Tells which of a graph's messages its thread's states stand for: `Coverage`, a value.

A thread keeps it in a field of its own beside the messages. It goes by what was said, never by a
message's place or id, so that whatever was edited, redacted or taken away is read again, from the
deepest state that stands for what is left of it. Nothing here asks a store or a model.
"""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from langchain_rwkv_state.errors import MarkerError
from langchain_rwkv_state.prompt.markers import STATE_KEY, leading_system, said_digest
from langchain_rwkv_state.state import is_reference

FIELD = "rwkv_state"
"""Key of a thread's coverage in a graph's state."""

COVERED_MAX = 16
"""How many states are known of the messages that a thread holds."""

DROPPED_MAX = 24
"""How many of the dropped messages are known still: the first, and the last."""

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
        dropped: Digests of messages that the thread holds no more: the first, and the last ones.
        ids: Ids of the message that the thread's last turn began with, and of the last answer.
    """

    covered: tuple[Covered, ...] = (Covered(0, None, _EMPTY),)
    dropped: tuple[str, ...] = ()
    ids: tuple[str | None, ...] = ()

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
            coverage = cls(covered, dropped, tuple(field["ids"]))  # type: ignore[index]
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
            "ids": [*self.ids],
            "dropped": base64.b64encode(b"".join(map(bytes.fromhex, self.dropped))).decode(),
        }

    def standing(self, messages: Sequence[BaseMessage]) -> Iterator[Covered]:
        """Gives the states that stand for the first of these messages, the deepest first.

        Args:
            messages: The thread's, with no marker among them.
        """
        chain = _chain(messages)
        for one in reversed(self.covered):
            if one.count < len(chain) and chain[one.count] == one.digest:
                yield one

    def and_answered(
        self, messages: Sequence[BaseMessage], answer: AIMessage, ref: str
    ) -> Coverage:
        """Returns the coverage once a state stands for all the messages and the answer to them.

        States that stand for something else by now are no longer in it.
        """
        covered = [*reversed(list(self.standing(messages)))]
        covered.append(Covered(len(messages) + 1, ref, _chain([*messages, answer])[-1]))
        if len(covered) > COVERED_MAX:
            del covered[_least_missed(covered)]
        return replace(self, covered=tuple(covered), ids=(*self.ids[:1], answer.id))

    def without_repeats(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Returns a thread's messages without those that a client sent once more.

        They lead up to the thread's end, so that an answer is among them: a prompt's examples,
        which come back at each turn, do not. A client that shows no calls of tools leaves these
        out.

        Args:
            messages: The thread's, with no marker among them.

        Warns:
            UserWarning: There are turns of this thread among the new messages that do not lead to
                its end: they are read once more.
        """
        own, new = self._own(messages)
        shorts, ways = _shorts(new), self._ways_up(own)
        starts = [0, leading_system(new)]
        if self._forgot and self.dropped[0] in shorts:  # all before it is new
            starts = [shorts.index(self.dropped[0])]
        answers = [at for at, message in enumerate(new) if _is_answer(message)]
        for start in dict.fromkeys(starts):
            first = next((at for at in answers if at >= start), len(new))
            for end in range(len(new), first, -1):
                if any(self._leads_up(shorts[start:end], known) for known in ways):
                    return [*own, *new[:start], *new[end:]]
        known = {*self.dropped, *_shorts(own)}
        if any(at and {shorts[at - 1], shorts[at]} <= known for at in answers):
            warnings.warn(
                "Some of these messages are turns that the thread was told already, but they do "
                "not go on from its end: all are read again, as they are given. Send only new "
                "messages, or the thread as it was; to go on from an earlier place, pass the "
                "checkpoint_id of that place.",
                stacklevel=2,
            )
        return list(messages)

    def moved_on(
        self, messages: Sequence[BaseMessage], *, keep_last: int, keep_turn: bool = False
    ) -> tuple[Coverage, int]:
        """Lets a thread drop messages that its states stand for.

        Args:
            messages: The thread's.
            keep_last: How many covered messages it keeps at least.
            keep_turn: Whether it keeps what was said since the last question, too.

        Returns:
            The coverage of the rest; and how many of the first messages are dropped.
        """
        standing = list(reversed(list(self.standing(messages))))
        left = standing[-1].count - keep_last
        if keep_turn:
            asked = [at for at, message in enumerate(messages) if not _is_step(message)]
            left = min(left, asked[-1] if asked else 0)
        bases = [one for one in standing if one.count <= left and not _waits(messages, one.count)]
        bases = bases or standing[:1]
        # A result without its call is nothing that a user, or another model, can read.
        whole = [one for one in bases if one.count and not _is_result(messages, one.count)]
        base = (whole if keep_last and whole else bases)[-1]
        chain = _chain(messages[base.count :])
        covered = tuple(
            Covered(one.count - base.count, one.ref, chain[one.count - base.count])
            for one in standing
            if one.count >= base.count
        )
        dropped = (*self.dropped, *_shorts(messages[: base.count]))
        if len(dropped) > DROPPED_MAX:
            dropped = (dropped[0], *dropped[1 - DROPPED_MAX :])
        return replace(self, covered=covered, dropped=dropped), base.count

    @property
    def _forgot(self) -> bool:
        """Whether there may be dropped messages that are not known any more."""
        return len(self.dropped) == DROPPED_MAX

    def _own(self, messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[BaseMessage]]:
        """Parts what the thread held before this turn from what is new.

        It held what a state stands for; all up to the message that its last turn began with, or to
        its last answer; the steps behind that; and answers that carry one of its references, which
        stand where they stood, or before that if something was removed.
        """
        places = {one.ref: one.count for one in self.covered}
        end = next(self.standing(messages)).count
        for at, message in enumerate(messages):
            known_id = message.id is not None and message.id in self.ids
            if known_id or at < places.pop(str(message.response_metadata.get(STATE_KEY)), 0):
                end = max(end, at + 1)
        known = {*self.dropped, *_shorts(messages[:end])}
        while end < len(messages) and _is_step(messages[end]):
            if _is_answer(messages[end]) and not known.isdisjoint(_shorts([messages[end]])):
                break  # a copy: the last messages that a client was shown may begin with an answer
            end += 1
        return list(messages[:end]), list(messages[end:])

    def _ways_up(self, own: Sequence[BaseMessage]) -> list[Sequence[str]]:
        """Returns what a client may be told of that leads up to the thread's end.

        What the thread holds stays in its place where it is sent with the ids that it has there;
        without them it comes once more, behind what was dropped. Of a turn that got no answer a
        client knows the question, and maybe some steps.
        """
        ours = _shorts(own)
        answers = [at for at, message in enumerate(own) if _is_last_word(message)]
        shown = range(answers[-1] + 1 if answers else 0, len(own) + 1)
        return [self.dropped, *((*self.dropped, *ours[:count]) for count in shown)]

    def _leads_up(self, some: Sequence[str], known: Sequence[str]) -> bool:
        """Says whether messages lead up to the last of the known ones, with others left out."""
        if not known or some[-1] != known[-1]:
            return False
        rest = iter(known)
        return all(one in rest for one in (some[-_EVIDENCE:] if self._forgot else some))


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
        and coverage.covered[0].digest == _EMPTY
        and all(isinstance(count, int) for count in counts)
        and counts == sorted(counts)
        and all(one is None or isinstance(one, str) for one in coverage.ids)
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


def _is_answer(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage)


def _is_last_word(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage) and not message.tool_calls


def _is_step(message: BaseMessage) -> bool:
    return isinstance(message, (AIMessage, ToolMessage))


def _shorts(messages: Sequence[BaseMessage]) -> list[str]:
    """Returns the digests by which messages are known that come back from a client."""
    return [said_digest(message)[: 2 * _SHORT_BYTES] for message in messages]


def _chain(messages: Sequence[BaseMessage]) -> list[str]:
    """Returns the digest of no message, of the first, of the first two, and so on."""
    chain = [_EMPTY]
    for message in messages:
        told = chain[-1] + said_digest(message) + _beside_the_words(message)
        chain.append(hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[: len(_EMPTY)])
    return chain


def _beside_the_words(message: BaseMessage) -> str:
    """Returns what else a model reads of a message: a client may leave it out, an edit may not."""
    broken = [[call["name"], call["args"]] for call in getattr(message, "invalid_tool_calls", ())]
    failed = getattr(message, "status", None) == "error"
    role = getattr(message, "role", None)
    return json.dumps([role, failed, broken]) if role or failed or broken else ""
