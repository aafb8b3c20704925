"""Plans a turn: turns messages into the state to start from and the token ids to read.

Also files the answer for the history that asked for it. Nothing is generated here, and no head
moves. What stands before a marker is already in the marker's state, so it is read again only where
it has changed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from langchain_rwkv_state.engine import Done
from langchain_rwkv_state.errors import MarkerError
from langchain_rwkv_state.prefix_cache import Caching, PrefixStateCache
from langchain_rwkv_state.prompt.call_options import with_system
from langchain_rwkv_state.prompt.content import kind_of
from langchain_rwkv_state.prompt.markers import (
    Mark,
    handed_out,
    is_flattened_marker,
    is_marker,
    leading_system,
    marker_remainder,
    messages_digest,
    read_marker,
)
from langchain_rwkv_state.prompt.template import ChatTemplate, Reasoning, Segment, block_digest
from langchain_rwkv_state.state import Fingerprint, RWKVState
from langchain_rwkv_state.store import StateStore


@dataclass(frozen=True)
class PromptPlan:
    """What a model has to read for one turn.

    Attributes:
        base: The state to start from.
        base_ref: Its reference; ``None`` for the zero state.
        ids: Token ids that the state behind the turn stands for, but for the answer's.
        prompt: Token ids to read before the answer, where they are others: what asks for a thought
            is in no state, and neither is the beginning of an answer that is to be continued.
        continued: That beginning.
        system_digest: Digest of the messages before the marker, kept with the states that follow.
        turn_id: Under which a history wants the answer filed.
        unread_at: Number of ids after which a history's unread messages are read.
        unread_digest: Digest of those messages.
        ends: Numbers of ids after which segments end.
        system_end: Number of ids after which the messages before the marker end, if there are any.
        shared: Number of ids that other conversations may begin with too; ``None`` for all. What
            comes behind the marker of a new conversation is that conversation's own.
        flattened: Whether a marker's text stands among what is read, as words.
    """

    base: RWKVState
    base_ref: str | None
    ids: tuple[int, ...]
    prompt: tuple[int, ...] | None = None
    continued: str = ""
    system_digest: str | None = None
    turn_id: str | None = None
    unread_at: int | None = None
    unread_digest: str | None = None
    ends: tuple[int, ...] = ()
    system_end: int | None = None
    shared: int | None = None
    flattened: bool = False

    @property
    def reach(self) -> int:
        """Number of ids up to which a prefix cache may keep states."""
        return len(self.ids) if self.shared is None else min(self.shared, len(self.ids))

    def caching(self, cache: PrefixStateCache | None, salt: str | None) -> Caching | None:
        """Returns what a prefix cache may do for the reading; ``None`` without a cache.

        Args:
            cache: The cache.
            salt: Keeps tenants apart.
        """
        if cache is None:
            return None
        return Caching(
            cache,
            salt=salt,
            private=self.base_ref is not None,
            shared=self.shared,
            ends=self.ends,
            system_end=self.system_end,
        )

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Positions at which the engine is to keep the state."""
        return () if self.unread_at is None else (self.unread_at,)


@dataclass(frozen=True)
class _Parts:
    """Messages taken apart at their marker."""

    before: list[BaseMessage]
    mark: Mark | None
    after: list[BaseMessage]


def plan(
    messages: Sequence[BaseMessage],
    *,
    template: ChatTemplate,
    store: StateStore,
    zero: RWKVState,
    answer: bool = True,
    lines: str = "",
    reasoning: Reasoning = None,
    thoughts: bool = False,
) -> PromptPlan:
    """Works out what to read for `messages`.

    Args:
        messages: What LangChain hands to a chat model; at most one conversation's markers.
        template: Turns messages into token ids.
        store: Where the marker's reference is looked up.
        zero: The model's zero state; its fingerprint is the model's.
        answer: Whether an answer is to follow. A last message that is an answer's beginning, with
            no calls in it, is then continued.
        lines: What stands below the system prompt, such as a list of tools.
        reasoning: Whether a thought is to stand before the answer.
        thoughts: Whether the thoughts of earlier answers are read too.

    Raises:
        MarkerError: A marker is malformed, or two markers belong to different conversations.
        StateNotFound, StateExpired: The marker's state is not in `store`.
        StateMismatch: It belongs to another model.
        ValueError: There is nothing to read.
    """
    parts = _take_apart(messages, store)
    mark = parts.mark
    ref = mark.ref if mark else None
    base = zero if ref is None else load_state(ref, store=store, fingerprint=zero.fingerprint)
    before, covered = with_system(parts.before, lines), base.system_digest
    if before and not _is_transcript(before, base, template=template, zero=zero, thoughts=thoughts):
        covered = _system_digest(before, template)
    head = before if ref is None or _changed(covered, base.system_digest) else []
    to_read = [*head, *parts.after]
    if not to_read and mark is None:
        raise ValueError("There are no messages to read: pass at least one.")
    fixed = len(head) + (mark.n_unread if mark else 0)
    segments, prompt, continued = _written(
        to_read,
        fixed,
        template=template,
        start=base.n_tokens == 0,
        answer=answer,
        reasoning=reasoning,
        thoughts=thoughts,
    )
    ends = tuple(itertools.accumulate(len(segment.ids) for segment in segments))
    system_end = ends[len(head) - 1] if head else None
    unread_at = unread_digest = None
    if mark is not None and mark.n_unread:
        unread = parts.after[: mark.n_unread]
        if len(unread) == mark.n_unread:
            until = len(head) + mark.n_unread
            unread_at = len(ids_of(segments[:until]))
            unread_digest = messages_digest(unread)
    return PromptPlan(
        base=base,
        base_ref=ref,
        ids=ids_of(segments),
        prompt=prompt,
        continued=continued,
        system_digest=covered,
        turn_id=mark.turn_id if mark else None,
        unread_at=unread_at,
        unread_digest=unread_digest,
        ends=ends,
        system_end=system_end,
        shared=system_end or 0 if mark is not None and ref is None else None,
        flattened=_told_of_flattened(message.content for message in to_read),
    )


def count_tokens(
    messages: Sequence[BaseMessage],
    *,
    template: ChatTemplate,
    lines: str = "",
    reasoning: Reasoning = None,
    thoughts: bool = False,
) -> int:
    """Returns how many tokens are read, from nothing on, before messages are answered.

    Args:
        messages: What is said, with no marker.
        template: As for `plan`, and so are the others.
        lines: What stands below the system prompt.
        reasoning: Left alone where the last message is an answer's beginning, which leaves no room
            for a thought: whoever counts asks for no answer.
        thoughts: Whether the thoughts of earlier answers are read too.
    """
    said = with_system(messages, lines)
    begun = bool(said) and is_begun(said[-1])
    segments, prompt, _ = _written(
        said,
        0,
        template=template,
        start=True,
        answer=True,
        reasoning=None if begun else reasoning,
        thoughts=thoughts,
    )
    return len(ids_of(segments) if prompt is None else prompt)


def _written(
    to_read: Sequence[BaseMessage],
    fixed: int,
    *,
    template: ChatTemplate,
    start: bool,
    answer: bool,
    reasoning: Reasoning,
    thoughts: bool,
) -> tuple[list[Segment], tuple[int, ...] | None, str]:
    """Writes messages down; the first `fixed` of them are no beginning of an answer.

    Returns:
        The segments; and, as in `PromptPlan`, the prompt and the answer's beginning.
    """
    begun = to_read[-1] if answer and len(to_read) > fixed and is_begun(to_read[-1]) else None
    told = to_read[:-1] if begun is not None else to_read
    segments = template.segments(told, start=start, answer=answer, thoughts=thoughts)
    prompt, continued = None, ""
    if begun is not None:
        prompt, continued = _continuing(begun, segments, template, reasoning)
    elif answer:
        prompt = _thinking(told, segments, template, reasoning, start=start, thoughts=thoughts)
    return segments, prompt, continued


def is_begun(message: BaseMessage) -> bool:
    """Says whether a message is the beginning of an answer."""
    return kind_of(message) == "ai" and not getattr(message, "tool_calls", None)


def _continuing(
    begun: BaseMessage, segments: Sequence[Segment], template: ChatTemplate, reasoning: Reasoning
) -> tuple[tuple[int, ...] | None, str]:
    """Returns the prompt that ends with an answer's beginning, and that beginning.

    Raises:
        ValueError: A thought is asked for, and what is to stand behind it is there already.
    """
    text = template.text(begun)
    if not text:
        return None, ""
    if reasoning:
        raise ValueError(
            f"reasoning={reasoning!r} asks for a thought before the answer, and the last message "
            "is the answer's beginning: leave one of them out."
        )
    return (*ids_of(segments), *template.answer_ids(text)), text


def _thinking(
    told: Sequence[BaseMessage],
    segments: Sequence[Segment],
    template: ChatTemplate,
    reasoning: Reasoning,
    *,
    start: bool,
    thoughts: bool,
) -> tuple[int, ...] | None:
    """Returns the prompt that asks for a thought, or for none; ``None`` where neither is asked."""
    tail = template.thought_ids(reasoning)
    if not tail:
        return None
    effort = template.efforts.get(reasoning, "") if isinstance(reasoning, str) else ""
    if effort and told and kind_of(told[-1]) == "human":
        last = HumanMessage(template.text(told[-1]) + effort)
        segments = template.segments(
            [*told[:-1], last], start=start, answer=True, thoughts=thoughts
        )
    return (*ids_of(segments), *tail)


def plan_text(
    text: str,
    *,
    after: Sequence[BaseMessage] = (),
    template: ChatTemplate,
    store: StateStore,
    zero: RWKVState,
) -> PromptPlan:
    """Works out what to read for a plain text, as it stands, without the chat template.

    Args:
        text: The text.
        after: A marker, and messages behind it, to read first.
        template: Says how a sequence begins.
        store: Where the marker's reference is looked up.
        zero: The model's zero state.

    Raises:
        ValueError: The text is empty.
        MarkerError, StateNotFound, StateExpired, StateMismatch: As `plan`.
    """
    if not text:
        raise ValueError("The text to read is empty: pass at least one character.")
    before = PromptPlan(zero, None, ())
    if after:
        before = plan(after, template=template, store=store, zero=zero, answer=False)
    start = before.base.n_tokens == 0 and not before.ids
    return replace(
        before,
        ids=(*before.ids, *template.text_ids(text, start=start)),
        flattened=_told_of_flattened([text]) or before.flattened,
    )


def load_state(ref: str, *, store: StateStore, fingerprint: str) -> RWKVState:
    """Returns a stored state after checking that it belongs to this model.

    Raises:
        StateNotFound, StateExpired: It is not in `store`.
        StateMismatch: It belongs to another model; the message says what differs.
    """
    state = store.get(ref)
    Fingerprint.parse(fingerprint).require(state.fingerprint)
    return state


def stage(planned: PromptPlan, done: Done, store: StateStore) -> str:
    """Keeps the state behind an answer for whoever commits it, and returns its reference."""
    tokens = (*planned.ids, *done.answer_ids)
    state = done.state.with_system_digest(planned.system_digest)
    return store.stage(state, parent=planned.base_ref, tokens=tokens)


def ids_of(segments: Iterable[Segment]) -> tuple[int, ...]:
    """Joins the token ids of segments."""
    return tuple(token for segment in segments for token in segment.ids)


def _take_apart(given: Sequence[BaseMessage], store: StateStore) -> _Parts:
    """Splits messages into those before the marker and those after it.

    Where a history handed out a marker, that one counts and no other: what else is among the
    messages came from whoever writes to the chain, and a reference is a capability.
    """
    own = [message for message in given if handed_out(message) is not None]
    messages = [
        message
        for message in given
        if not own or not is_marker(message) or handed_out(message) is not None
    ]
    places = [place for place, message in enumerate(messages) if is_marker(message)]
    if not places:
        end = leading_system(messages)
        return _Parts(list(messages[:end]), None, list(messages[end:]))
    marks = [
        # A turn id that nobody handed out stands for nothing; the reference is a plain one.
        handed_out(messages[place]) or Mark(read_marker(messages[place]).ref)
        for place in places
    ]
    for earlier in marks[:-1]:
        _require_descent(marks[-1], earlier, store)
    first, last = places[0], places[-1]
    ahead, _ = marker_remainder(messages[first])
    _, behind = marker_remainder(messages[last])
    before = [*messages[:first], *_system(ahead)]
    return _Parts(before, marks[-1], [*_system(behind), *messages[last + 1 :]])


def _require_descent(later: Mark, earlier: Mark, store: StateStore) -> None:
    if earlier.ref is None or later.ref == earlier.ref:
        return
    if later.ref is None or not store.descends(later.ref, earlier.ref):
        raise MarkerError(
            f"Of two state markers among the messages, {later.ref or 'that of a new conversation'} "
            f"does not descend from {earlier.ref}: a model carries on one conversation at a time. "
            "Pass one marker, or answer each conversation on its own."
        )


def _system(text: str) -> list[BaseMessage]:
    return [SystemMessage(text)] if text else []


def _is_transcript(
    before: Sequence[BaseMessage],
    base: RWKVState,
    *,
    template: ChatTemplate,
    zero: RWKVState,
    thoughts: bool,
) -> bool:
    """Says whether the messages before a marker are the very ones that its state stands for."""
    if base.n_tokens == 0:
        return False
    said = ids_of(template.segments(before, start=True, thoughts=thoughts))
    return zero.derivation.read(said) == base.derivation


def _system_digest(before: Sequence[BaseMessage], template: ChatTemplate) -> str:
    """Returns a digest of what a model would read of the messages before a marker."""
    return block_digest(segment.ids for segment in template.segments(before, start=True))


def _told_of_flattened(contents: Iterable[object]) -> bool:
    """Says, with a warning, whether a marker's text stands among what is to be read."""
    if not any(map(is_flattened_marker, contents)):
        return False
    warnings.warn(
        "The prompt holds the text of a state marker and not the marker: a template or "
        "get_buffer_string turned a history into text, or a message lost its additional_kwargs "
        "(as in convert_to_openai_messages). The model reads those words and remembers nothing of "
        "the conversation. Put the history's messages into the prompt with MessagesPlaceholder.",
        stacklevel=2,
    )
    return True


def _changed(now: str | None, then: str | None) -> bool:
    """Says, with a warning, whether the messages before the marker are others than they were."""
    if now is None or now == then:
        return False
    warnings.warn(
        "The messages before the state marker (the system prompt, for example, or the tools that "
        "it lists) are not those that the conversation began with: they are read now, as new text "
        "behind it, and stay in the state. Keep text that changes from turn to turn behind the "
        "marker.",
        stacklevel=2,
    )
    return True
