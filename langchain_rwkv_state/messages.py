"""The state marker: the one message by which a conversation's memory enters a model.

A marker is an ordinary `SystemMessage` with a fixed text that is never fed to the model. It
stands for every message before it. The easy mistake is to build or read one by hand: `marker`
makes it, `split_at_marker` finds it, and nothing else needs to know its form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

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

from langchain_rwkv_state.errors import MarkerError, StateCorrupt
from langchain_rwkv_state.json_text import json_text
from langchain_rwkv_state.state import is_reference

MARKER_TEXT = "[The conversation so far is in the model's state.]"
STATE_KEY = "rwkv_state"
"""Key of the reference in a marker's `additional_kwargs` and an answer's `response_metadata`."""
TURN_KEY = "rwkv_turn"
UNREAD_KEY = "rwkv_unread"
NEW = "new"
"""In place of a reference: a conversation that has no state yet."""

_TURN = re.compile(r"[0-9a-f]{32}")


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


def is_marker(message: BaseMessage) -> bool:
    """Says whether a message is a state marker (sound or not)."""
    return message.type == "system" and STATE_KEY in message.additional_kwargs


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

    There is such text where system messages were joined, as `merge_message_runs` does.
    """
    before, _, behind = str(message.text).partition(MARKER_TEXT)
    return before.strip(), behind.replace(MARKER_TEXT, "").strip()


def without_markers(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Returns the messages with every marker left out.

    A reference is a capability: sessions drop the markers that come with their input, so that a
    caller cannot read another's conversation.
    """
    return [message for message in messages if not is_marker(message)]


def to_messages(model_input: LanguageModelInput) -> list[BaseMessage]:
    """Turns a chat model's input (text, prompt value or messages) into messages."""
    if isinstance(model_input, str):
        return [HumanMessage(model_input)]
    if isinstance(model_input, PromptValue):
        return model_input.to_messages()
    return convert_to_messages(model_input)


def text_digest(text: str) -> str:
    """Returns the digest by which an answer's text is recognised; surrounding space is ignored."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def messages_digest(messages: Sequence[BaseMessage]) -> str:
    """Returns a digest of messages by what a model reads of them: type and text."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.type}\x00{text_digest(str(message.text))}\x00".encode())
    return digest.hexdigest()


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
