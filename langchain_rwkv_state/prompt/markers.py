"""Makes and reads state markers: the one message by which a conversation's memory enters a model.

A marker is an ordinary `SystemMessage` with a fixed text that is never fed to the model. It stands
for every message before it. `marker` makes it, `read_marker` reads it, and nothing else needs to
know its form.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    SystemMessage,
    convert_to_messages,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables.config import var_child_runnable_config

from langchain_rwkv_state.errors import MarkerError, StateCorrupt
from langchain_rwkv_state.prompt.json_text import json_text
from langchain_rwkv_state.state import is_reference

MARKER_TEXT = "[The conversation so far is in the model's state.]"
STATE_KEY = "rwkv_state"
"""Key of the reference in a marker's `additional_kwargs` and an answer's `response_metadata`."""
TURN_KEY = "rwkv_turn"
UNREAD_KEY = "rwkv_unread"
NEW = "new"
"""In place of a reference: a conversation that has no state yet."""

_TURN = re.compile(r"[0-9a-f]{32}")
_FLAT_TEXT = "[The conversation so far is in the model"  # quotes may have been escaped behind it
_SAID_DIGITS = 16


@dataclass(frozen=True)
class Mark:
    """What a marker says.

    Attributes:
        ref: Reference of the state, ``None`` for a conversation that has none yet.
        turn_id: Under which the model files its answers for a history, ``None`` for none.
        n_unread: How many of the messages right after the marker are a history's unread ones.
    """

    ref: str | None
    turn_id: str | None = None
    n_unread: int = 0


def marker(ref: str | None, *, turn_id: str | None = None, n_unread: int = 0) -> SystemMessage:
    """Returns the message that stands for a conversation's state.

    Args:
        ref: A reference, as `StateStore.put`, `ChatRWKV.prefill` and
            ``message.response_metadata["rwkv_state"]`` give it; ``None`` for a new conversation.
        turn_id: Used by `RWKVStateHistory`.
        n_unread: Used by `RWKVStateHistory`.

    Raises:
        MarkerError: `ref` is not a state reference.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> chat.invoke([marker(ref), HumanMessage("What is my name?")])  # doctest: +SKIP
    """
    if ref is not None and not is_reference(ref):
        raise MarkerError(
            f"{ref!r} is not a state reference ('rwkv1-' and 64 hex digits): pass what "
            "store.put(), chat.prefill() or response_metadata['rwkv_state'] gave."
        )
    extra: dict[str, object] = {STATE_KEY: ref or NEW}
    if turn_id is not None:
        extra |= {TURN_KEY: turn_id, UNREAD_KEY: str(n_unread)}
    return SystemMessage(content=MARKER_TEXT, additional_kwargs=extra)


_handed_out: weakref.WeakValueDictionary[str, Mark] = weakref.WeakValueDictionary()
_lately_handed_out: deque[Mark] = deque(maxlen=10_000)  # whatever became of the history


def hand_out(mark: Mark) -> SystemMessage:
    """Returns the marker of a history's turn, and notes that it is the history's own.

    It counts as such for as long as `mark` is held, and until many more were handed out.

    Args:
        mark: What the marker says, with a turn id that nobody else knows.
    """
    if mark.turn_id is not None:
        _handed_out[mark.turn_id] = mark
        _lately_handed_out.append(mark)
    return marker(mark.ref, turn_id=mark.turn_id, n_unread=mark.n_unread)


def handed_out(message: BaseMessage) -> Mark | None:
    """Returns what a marker says if a history of this process handed out that very marker.

    A turn id that nobody handed out, or one with another reference than it was handed out with,
    is somebody's forgery, or comes from another process: nothing follows from it.
    """
    if not is_marker(message):
        return None
    turn_id = message.additional_kwargs.get(TURN_KEY)
    mark = _handed_out.get(turn_id) if isinstance(turn_id, str) else None
    same = mark is not None and message.additional_kwargs[STATE_KEY] == (mark.ref or NEW)
    return mark if same else None


def is_marker(message: BaseMessage) -> bool:
    """Says whether a message is a state marker (sound or not)."""
    return message.type == "system" and STATE_KEY in message.additional_kwargs


def is_flattened_marker(text: object) -> bool:
    """Says whether a marker's fixed text stands in a text: there it is words and no memory.

    That is what a template or `get_buffer_string` makes of a marker that it is given as text.
    """
    return _FLAT_TEXT in html.unescape(str(text))


def read_marker(message: BaseMessage) -> Mark:
    """Returns what a marker says.

    Raises:
        MarkerError: It is malformed, for example because two markers were merged into one.
    """
    extra = message.additional_kwargs
    raw, turn_id, unread = extra.get(STATE_KEY), extra.get(TURN_KEY), extra.get(UNREAD_KEY, "0")
    if raw != NEW and not is_reference(raw):
        raise MarkerError(
            f"The state marker holds {raw!r}, which is not a state reference. If messages are "
            "merged before the model, keep two markers from being merged into one."
        )
    if turn_id is not None and not (isinstance(turn_id, str) and _TURN.fullmatch(turn_id)):
        raise MarkerError(f"The state marker's turn id {turn_id!r} is malformed.")
    if not (isinstance(unread, str) and unread.isdecimal() and len(unread) < 7):
        raise MarkerError(f"The state marker's count of unread messages {unread!r} is malformed.")
    return Mark(None if raw == NEW else str(raw), turn_id, int(unread))


def marker_remainder(message: BaseMessage) -> tuple[str, str]:
    """Returns a marker's text before and behind the fixed one.

    There is such text where system messages were joined, as `merge_message_runs` does. Of the fixed
    text there may be only a part, as `trim_messages` leaves it with ``allow_partial``.
    """
    text = str(message.text)
    before, found, behind = text.partition(MARKER_TEXT)
    if not found:
        before, behind = _around_a_cut_marker(text.strip())
    return before.strip(), behind.replace(MARKER_TEXT, "").strip()


def _around_a_cut_marker(text: str) -> tuple[str, str]:
    """Returns a text before and behind a part of the fixed text, which stands at one of its ends.

    A trimmer keeps the end of a text or its beginning: so what is left of the fixed text is its end
    in front, or its beginning at the back.
    """
    if text in MARKER_TEXT:
        return "", ""
    lengths = range(len(MARKER_TEXT) - 1, 3, -1)
    end = next((n for n in lengths if text.startswith(MARKER_TEXT[-n:])), 0)
    if end:
        return "", text[end:]
    start = next((n for n in lengths if text.endswith(MARKER_TEXT[:n])), 0)
    return text[: len(text) - start], ""


def without_markers(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Returns the messages with every marker left out.

    A reference is a capability: sessions drop the markers that come with their input, so that a
    caller cannot read another's conversation.

    Raises:
        TypeError: One of them is no message object, such as a dict: it might hide a marker.
    """
    for message in messages:
        if not isinstance(message, BaseMessage):
            raise TypeError(
                f"A message is {message!r:.100}, of type {type(message).__name__}: markers are "
                "known among message objects alone. Pass what LangChain's convert_to_messages "
                "makes of the list."
            )
    return [message for message in messages if not is_marker(message)]


def without_strangers(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Returns messages without the markers that no history handed out, where there is a history.

    Should a trimmer cut the history's own marker, one that came with the input would stand alone
    and be taken for the caller's. Where `RunnableWithMessageHistory` can be seen around the call,
    it is not. Where it cannot, as on a direct call, it counts: also on a thread that a step of the
    chain started without LangChain's context.
    """
    config = var_child_runnable_config.get() or {}
    history = config.get("configurable", {}).get("message_history")
    if not getattr(history, "hands_out_markers", False):
        return list(messages)
    return [m for m in messages if not is_marker(m) or handed_out(m) is not None]


class InputError(TypeError, ValueError):
    """What was given to a model is no input of one. LangChain's own models raise a `ValueError`."""


def leading_system(messages: Sequence[BaseMessage]) -> int:
    """Returns how many of the first messages are system messages."""
    count = 0
    while count < len(messages) and messages[count].type == "system":
        count += 1
    return count


def to_messages(model_input: object) -> list[BaseMessage]:
    """Turns a chat model's input (text, prompt value or messages) into messages.

    Args:
        model_input: As LangChain's models take it; or ``{"messages": ...}``, a graph's state, with
            such an input in it.

    Raises:
        InputError: It is something else, or there are no messages in it.
    """
    unpacked = as_model_input(model_input)
    if isinstance(unpacked, str):
        return [HumanMessage(unpacked)]
    if isinstance(unpacked, PromptValue):
        return unpacked.to_messages()
    return convert_to_messages(unpacked)


def as_model_input(model_input: object) -> LanguageModelInput:
    """Returns a model's input once it is known to be one; ``{"messages": ...}`` is unpacked.

    Raises:
        InputError: It is something else, or there are no messages in it.
    """
    if isinstance(model_input, Mapping):
        if set(model_input) != {"messages"}:
            keys = ", ".join(repr(key) for key in list(model_input)[:5]) or "nothing"
            raise InputError(
                f"The input is a dict with {keys}, which is no message: pass a text, a list of "
                'messages, a prompt value, or {"messages": [...]} with nothing beside it. A chain '
                "that is given a dict needs a prompt template before the model."
            )
        return as_model_input(model_input["messages"])
    if isinstance(model_input, (str, PromptValue)):
        return model_input
    if isinstance(model_input, BaseMessage):
        raise InputError(
            f"The input is a single {type(model_input).__name__}: pass it in a list, [message]."
        )
    if isinstance(model_input, Sequence) and not isinstance(model_input, (bytes, bytearray)):
        if not model_input:
            raise InputError(
                "The input is an empty list, with nothing to read: pass at least one message."
            )
        for item in model_input:
            if item is None:
                raise InputError(
                    "The input is a list with None in it, which is no message: leave it out, or "
                    "pass a text or a message in its place."
                )
        return model_input
    raise InputError(
        f"The input is {model_input!r:.100}, of type {type(model_input).__name__}: pass a text, a "
        'list of messages, a prompt value, or {"messages": [...]}.'
    )


def text_digest(text: str) -> str:
    """Returns the digest by which an answer's text is recognised; surrounding space is ignored."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def message_digest(message: BaseMessage) -> str:
    """Returns the digest by which a message is recognised: its text, and the tools it calls."""
    calls = _calls(message)
    text = text_digest(str(message.text))
    if not calls:
        return text
    said = json.dumps([text, calls], sort_keys=True, default=repr)
    return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()


def flattened_key(answer_digest: str) -> str:
    """Returns where the answer to a flattened marker is filed, in place of under a turn id."""
    return f"flattened:{answer_digest}"


def messages_digest(messages: Sequence[BaseMessage]) -> str:
    """Returns a digest of messages by what a model reads of them: type, text and calls."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.type}\x00{message_digest(message)}\x00".encode())
    return digest.hexdigest()


def said_digests(messages: Iterable[BaseMessage]) -> tuple[str, ...]:
    """Returns a short digest of each message that was said, system messages left out.

    By these a session recognises what it has heard already: type, text, and the tool calls.
    """
    return tuple(said_digest(message) for message in messages if message.type != "system")


def said_digest(message: BaseMessage) -> str:
    """Returns a short digest of a message by its type, its text and the tools it calls."""
    kind = message.type.removesuffix("MessageChunk").lower()
    said = [kind, text_digest(str(message.text)), _calls(message)]
    text = json.dumps(said, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:_SAID_DIGITS]


def _calls(message: BaseMessage) -> list[Any]:
    return [[call["name"], call["args"]] for call in getattr(message, "tool_calls", None) or ()]


def message_to_json(message: BaseMessage) -> str:
    """Returns a message as JSON text, for a store to keep as unread.

    Raises:
        UnsupportedContentError: It holds something that has no form in JSON.
    """
    return json_text(message_to_dict(message), what=f"A message of type {message.type!r}")


def message_from_json(text: str) -> BaseMessage:
    """Reads what `message_to_json` wrote.

    Raises:
        StateCorrupt: The text is something else.
    """
    try:
        return messages_from_dict([json.loads(text)])[0]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateCorrupt(f"An unread message is no message: {text!r:.200}.") from error
