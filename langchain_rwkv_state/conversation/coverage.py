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
from itertools import islice
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from langchain_rwkv_state.errors import MarkerError
from langchain_rwkv_state.prompt.markers import said_digest
from langchain_rwkv_state.state import is_reference

FIELD = "rwkv_state"
"""Key of a thread's coverage in a graph's state."""

COVERED_MAX = 16
"""How many states are known of the messages that a thread holds."""

DROPPED_MAX = 32
"""How many of the dropped messages are known still: the first, and the last."""

_SHORT_BYTES = 6
_OPEN_MAX = 256  # so many messages of a thread may be covered by nothing, and be recognised
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
        dropped: Digests of messages that the thread holds no more, the first and the last ones.
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
        chain = _chain([*messages, answer])
        covered = [*reversed(list(self.standing(messages)))]
        covered.append(Covered(len(messages) + 1, ref, chain[-1]))
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
        covered = next(self.standing(messages)).count
        shorts = _recognised(messages)
        # Behind what is covered the thread may hold a turn that failed, or that was edited.
        places = range(covered, min(covered + _OPEN_MAX, len(messages)))
        ends = {at: self._told_until(messages, shorts, covered, at) for at in places}
        told = [at for at, end in ends.items() if end > at]
        if told:
            first = self.dropped[:1]  # where it comes back, all before it is new
            at = max(told, key=lambda place: (shorts[place] in first, ends[place] - place))
            return [*messages[:at], *messages[ends[at] :]]
        every = [*self.dropped, *shorts[:covered]]
        new = range(covered + 1, len(messages))
        if any(_is_answer(messages[n]) and {shorts[n - 1], shorts[n]} <= {*every} for n in new):
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
            asked = (n for n, one in enumerate(messages) if not _is_step(one))
            left = min(left, max(asked, default=0))
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
        dropped = (*self.dropped, *_recognised(messages[: base.count]))
        return Coverage(covered, (*dropped[:1], *dropped[1:][1 - DROPPED_MAX :])), base.count

    def _told_until(
        self, messages: Sequence[BaseMessage], shorts: Sequence[str], covered: int, at: int
    ) -> int:
        """Returns where that ends of a client's messages which was told already; 0 for nowhere.

        It leads up to the thread's end, so that an answer stands last in it: a prompt's examples,
        which come back at each turn, do not. Behind it may come what the thread holds without an
        answer. A client that shows no calls of tools leaves these out.

        Args:
            messages: The thread's, and behind them the client's.
            shorts: Their digests.
            covered: How many of the thread's a state stands for.
            at: Where the client's begin.
        """
        ended = next((n for n in range(covered, 0, -1) if _is_last_word(messages[n - 1])), 0)
        # Steps alone, with no question among them, are the rest of an edited turn of the thread's;
        # but a lone answer is what a client's window may begin with.
        asked = next((n for n in range(at, len(messages)) if not _is_step(messages[n])), at)
        alone = any(map(_is_answer, messages[covered:at]))
        # What the thread holds stays in its place where it is sent with the ids that it has there;
        # without them it comes once more, behind what was dropped.
        for held in dict.fromkeys((covered, ended, 0)):
            known = [*self.dropped, *shorts[:held]]
            for last in _last_places(messages, shorts, known[-1:], at):
                begins = last > asked or (last == at == covered and asked == at + 1)
                if begins and self._leads_up(shorts, range(at, last + 1), known):
                    end = _behind(messages, shorts, range(held, at), last + 1)
                    whole = shorts[at] == known[0] and _is_last_word(messages[last])
                    asks = end == len(messages) or not _is_step(messages[end])
                    right_behind = at == covered and held in (covered, 0)
                    if right_behind or (asks and (end > last + 1 or (whole and not alone))):
                        return end
        if alone and not self.dropped and at == self.covered[-1].count:  # it was edited in place
            return _behind(messages, shorts, range(at), at)
        return 0

    def _leads_up(self, shorts: Sequence[str], places: range, known: Sequence[str]) -> bool:
        """Says whether messages are known ones, in their order, with others left out."""
        if len(self.dropped) == DROPPED_MAX:
            places = places[-_EVIDENCE:]
        rest = iter(known)
        return len(places) <= len(known) and all(shorts[place] in rest for place in places)


def _last_places(
    messages: Sequence[BaseMessage], shorts: Sequence[str], known: Sequence[str], at: int
) -> Iterator[int]:
    """Gives the last places, from one on, where an answer of this digest stands."""
    found = (n for n in range(len(shorts) - 1, at - 1, -1) if shorts[n] in known)
    return islice((n for n in found if _is_answer(messages[n])), _EVIDENCE)


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
        and all(one.ref is None or is_reference(one.ref) for one in coverage.covered)
        and all(isinstance(one.digest, str) for one in coverage.covered)
    )


def _behind(messages: Sequence[BaseMessage], shorts: Sequence[str], held: range, at: int) -> int:
    """Returns where those messages end that repeat from a place on what a thread holds."""
    shown = [n for n in held if not _is_answer(messages[n]) or _is_last_word(messages[n])]
    for places in (held, [n for n in shown if not isinstance(messages[n], ToolMessage)]):
        repeated = [shorts[n] for n in places]
        if shorts[at : at + len(repeated)] == repeated:
            return at + len(repeated)
    return at


def _is_step(message: BaseMessage) -> bool:
    return isinstance(message, (AIMessage, ToolMessage))


def _is_answer(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage)


def _is_last_word(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage) and not message.tool_calls


def _is_result(messages: Sequence[BaseMessage], at: int) -> bool:
    return at < len(messages) and isinstance(messages[at], ToolMessage)


def _waits(messages: Sequence[BaseMessage], at: int) -> bool:
    """Says whether calls right before a place have no result: a graph may still answer them."""
    before = messages[at - 1] if at else None
    calls = isinstance(before, AIMessage) and (before.tool_calls or before.invalid_tool_calls)
    return bool(calls) and not _is_result(messages, at)


def _recognised(messages: Sequence[BaseMessage]) -> list[str]:
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
