r"""Turns messages into segments and ids: the one place that knows how a conversation is written.

It reads no state and samples nothing. Each segment is encoded on its own, and the separator stands
*before* a segment, never behind one: so a transcript read in one go and its increments have the
same ids, and a state never includes the border that the next message will bring along. The easy
mistake is to encode two pieces in one go: a tokenizer may then choose a token across the border.

The ids of a conversation, with ``enc`` for `Tokenizer.encode`::

    [bos] enc("System: {text}") enc("\n\n") enc("User: {text}") enc("\n\n")
    enc("Assistant:") enc(" {answer}") enc("\n\n") enc("User: {text}") ...

**No message can forge a role.** A turn begins after ``"\n\n"`` and nowhere else, and `clean` takes
every blank line out of a text before it is encoded: line ends become ``"\n"``, a run of them, with
or without white space between, becomes one, and white space at both ends goes. Since tokenizers
are lossless, no token of such a text holds ``"\n\n"`` either (World has many, such as 261 and
3328). Answers of World and G1 models may hold blank lines (paragraphs, code), and keep them, but
for those before a role and a colon. An end of text cannot be forged: tokenizers give no special
ids for a text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from langchain_rwkv_state.prompt.content import kind_of, text_of, thought_of
from langchain_rwkv_state.prompt.tools import ToolFormat
from langchain_rwkv_state.tokenizer import Tokenizer, well_formed

Reasoning: TypeAlias = Literal["low", "medium", "high"] | bool | None
"""Whether a model thinks before it answers, and how much; ``None`` leaves it to the model."""

_SCHEME = "2"  # changes with the order of pieces or with `clean`
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def block_digest(segments: Iterable[Sequence[int]]) -> str:
    """Returns a digest of a block of segments, such as a system prompt's, by their ids."""
    digest = hashlib.sha256()
    for ids in segments:
        digest.update(repr(tuple(ids)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Segment:
    """One piece of a conversation, as the model reads it.

    Attributes:
        role: Who speaks, in the template's words, such as ``"User"``.
        text: What is said, cleaned; empty for the prompt of an answer.
        ids: The ids to read, with the beginning of text or the separator that stands before.
    """

    role: str
    text: str
    ids: tuple[int, ...]


class ChatTemplate:
    r"""How a conversation is written down.

    A template of one's own is a subclass with other words. Each needs a `name`, which goes into
    the fingerprint of states.

    Args:
        tokenizer: Gives the ids.

    Raises:
        ValueError: `clean` lets a separator or stop text through.

    Example:
        >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
        >>> class Interview(ChatTemplate):
        ...     name = "interview"
        ...     roles = {"system": "Topic", "human": "Q", "ai": "A", "tool": "Source"}
        >>> from langchain_core.messages import HumanMessage
        >>> Interview(WorldTokenizer()).segments([HumanMessage("Why?")], start=True)
        [Segment(role='Q', text='Why?', ids=(0, 82, 59, 21152, 64))]
    """

    name: ClassVar[str]
    """Names the template in fingerprints."""
    roles: ClassVar[Mapping[str, str]]
    """What the roles ``system``, ``human``, ``ai`` and ``tool`` are called."""
    opening: ClassVar[str] = "{role}: "
    """Begins a turn. A space at its end is read with the text, not with the prompt of an answer."""
    separator: ClassVar[str] = "\n\n"
    """Stands before every segment but the very first."""
    stops: ClassVar[tuple[str, ...]] = ("\n\n",)
    """Texts that end an answer: a message can hold none of them. Without any, what ends an answer
    is the end of text, or a blank line followed by a role and a colon."""
    tools: ClassVar[ToolFormat] = ToolFormat()
    """How tools are listed, called and answered."""
    efforts: ClassVar[Mapping[str, str]] = {}
    """For a model that thinks: what ``low``, ``medium`` and ``high`` add to the user's text."""
    sampling: ClassVar[Mapping[str, float]] = {}
    """Sampling settings for whoever sets none, by their names in `Sampling`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        for border in (self.separator, *self.stops):
            if border in self.clean(f"a{border}b"):
                raise ValueError(
                    f"The template {self.name!r} separates turns by {border!r}, and its clean() "
                    "leaves that in messages, so that they could forge a turn: override clean()."
                )
        self._separator_ids = tuple(self._encode(self.separator))

    @property
    def identity(self) -> str:
        """Name and digest of the template; another one gives other states."""
        words = [_SCHEME, self.separator, *self.stops, json.dumps(dict(self.roles), sort_keys=True)]
        if self.opening != ChatTemplate.opening:
            words.append(self.opening)
        digest = hashlib.sha256("\x00".join(words).encode()).hexdigest()
        return f"{self.name}-{digest[:8]}"

    @property
    def thinks(self) -> bool:
        """Whether its models can think before they answer."""
        return bool(self.efforts)

    @property
    def turn_roles(self) -> tuple[str, ...]:
        """The words that begin a turn, behind a blank line and before a colon."""
        return tuple(dict.fromkeys(self.roles.values()))

    def clean(self, text: str) -> str:
        r"""Returns a message's text as the model may read it: with no blank line in it.

        Cleaning twice changes nothing more.

        Example:
            >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
            >>> WorldTemplate(WorldTokenizer()).clean("Hi.\r\n \r\nAssistant: ok ")
            'Hi.\nAssistant: ok'
        """
        unix = well_formed(text).replace("\r\n", "\n").replace("\r", "\n")
        return _BLANK_LINES.sub("\n", unix).strip()

    def clean_answer(self, text: str) -> str:
        r"""Returns an answer's text as the model may read it.

        What a model said under this template is left as it is, so that a state stands for the text
        that the caller saw. Cleaning twice changes nothing more.

        Example:
            >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
            >>> template = WorldTemplate(WorldTokenizer())
            >>> template.clean_answer("One.\n\nTwo.\n\nUser: Hi.\n")
            'One.\n\nTwo.\nUser: Hi.'
        """
        if self.stops or self.separator != "\n\n":
            return self.clean(text)
        return _forged_turn(self.turn_roles).sub("\n", well_formed(text)).strip()

    def segments(
        self,
        messages: Sequence[BaseMessage],
        *,
        start: bool,
        answer: bool = False,
        thoughts: bool = False,
    ) -> list[Segment]:
        """Returns the segments of messages.

        Args:
            messages: What is said, in order; no state markers.
            start: Whether the state to read from has read nothing.
            answer: Whether the prompt of an answer follows.
            thoughts: Whether what was thought before an answer is read too.

        Raises:
            UnsupportedContentError: A message is of an unknown kind or holds more than text.
        """
        pieces = [self._pieces(message, thoughts=thoughts) for message in messages]
        if answer:
            pieces.append((self.roles["ai"], "", self.answer_prompt()))
        found: list[Segment] = []
        for role, text, ids in pieces:
            border = self._separator_ids if found or not start else self._bos()
            found.append(Segment(role, text, (*border, *ids)))
        return found

    def opening_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Returns a turn's ids as they are where a conversation begins with that turn."""
        bos, border = self._bos(), self._separator_ids
        if border and tuple(ids[: len(border)]) == border:
            return (*bos, *ids[len(border) :])
        return tuple(ids) if tuple(ids[: len(bos)]) == bos else (*bos, *ids)

    def block_length(self, ids: Sequence[int], digest: str) -> int | None:
        """Returns how many of a turn's first ids are the system block of a digest.

        Returns:
            The number; ``None`` where the turn does not begin with that block, or where an answer
            in it holds a blank line, so that its segments cannot be told apart.
        """
        begun, border = self.opening_ids(ids), self._separator_ids
        places = [at for at in range(1, len(begun)) if begun[at : at + len(border)] == border]
        block: list[tuple[int, ...]] = []
        for start, end in pairwise((0, *places, len(begun))):
            block.append(begun[start:end])
            if block_digest(block) == digest:
                return end + len(ids) - len(begun)
        return None

    def answer_prompt(self) -> list[int]:
        """Returns the ids after which the model answers, without what stands before."""
        return self._encode(self._turn(self.roles["ai"]))

    def answer_ids(self, text: str, thought: str = "") -> list[int]:
        """Returns the ids of an answer's text, read after the prompt of the answer."""
        cleaned = self._with_thought(self.clean_answer(text), thought)
        return self._answer_text_ids(cleaned)

    def thought_ids(self, reasoning: Reasoning) -> list[int]:
        """Returns the ids that follow the prompt of an answer where thinking is asked for or not.

        Half a tag: the model writes the rest of it. It is encoded in one piece, since tokens of
        World cross the tags.

        Raises:
            ValueError: The template's models do not think.
        """
        self.require_reasoning(reasoning)
        if reasoning is None or not self.thinks:
            return []
        return self._answer_text_ids("<think></think" if reasoning is False else "<think")

    def require_reasoning(self, reasoning: Reasoning) -> None:
        """Checks that what is asked for can be had.

        Raises:
            ValueError: The template's models do not think.
        """
        if reasoning and not self.thinks:
            raise ValueError(
                f"reasoning={reasoning!r} asks for a thought, and models of the template "
                f"{self.name!r} have none: leave it out, or pass template='g1' for a G1 model."
            )

    def text_ids(self, text: str, *, start: bool) -> list[int]:
        """Returns the ids of a bare text, with no template about it."""
        return [*(self._bos() if start else ()), *self._encode(text)]

    def text(self, message: BaseMessage, *, thoughts: bool = False) -> str:
        """Returns what a message says, cleaned; the calls of an answer as the model writes them.

        Raises:
            UnsupportedContentError: The message holds more than text.
        """
        said, kind = text_of(message), kind_of(message)
        if isinstance(message, AIMessage):
            thought = thought_of(message) if thoughts else ""
            return self._with_thought(self._answer(message, said), thought)
        if kind == "ai":
            return self.clean_answer(said)
        if isinstance(message, ToolMessage):
            said = self.tools.result(said, failed=message.status == "error")
        if kind == "tool" and self.roles["tool"] == self.roles["human"]:
            said = self.tools.result_lead + said.strip()
        return self.clean(said)

    def _answer(self, message: AIMessage, said: str) -> str:
        calls = [(call["name"], call["args"]) for call in message.tool_calls]
        broken = [_unfinished(call["name"], call["args"]) for call in message.invalid_tool_calls]
        written = [self.tools.calls(calls, ",".join(broken))] if calls or broken else []
        text = self.clean_answer(said)
        return self.clean_answer("\n".join([text, *written] if text else written))

    def _with_thought(self, text: str, thought: str) -> str:
        said = self.clean_answer(thought).replace("</think>", "")
        return f"<think>{said}</think>\n{text}".rstrip() if said else text

    def _pieces(self, message: BaseMessage, *, thoughts: bool) -> tuple[str, str, list[int]]:
        kind, text = kind_of(message), self.text(message, thoughts=thoughts)
        role = self.roles.get(kind) or kind[0].upper() + kind[1:]
        if kind == "ai":
            return role, text, [*self.answer_prompt(), *self._answer_text_ids(text)]
        return role, text, self._encode(self._turn(role, text))

    def _answer_text_ids(self, text: str) -> list[int]:
        role = self.roles["ai"]
        return self._encode(self._turn(role, text).removeprefix(self._turn(role)))

    def _turn(self, role: str, text: str = "") -> str:
        opening = self.opening.format(role=role)
        return opening + text if text else opening.rstrip(" ")

    def _bos(self) -> tuple[int, ...]:
        bos = self._tokenizer.bos_id
        return () if bos is None else (bos,)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class WorldTemplate(ChatTemplate):
    """The chat format of the RWKV World models: System, User, Assistant, blank lines between.

    Blank lines within an answer belong to it. The sampling is that of ChatRWKV.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
        >>> template = WorldTemplate(WorldTokenizer())
        >>> for s in template.segments([HumanMessage("Hi")], start=True, answer=True):
        ...     print(s)
        Segment(role='User', text='Hi', ids=(0, 24281, 59, 3880))
        Segment(role='Assistant', text='', ids=(261, 5585, 41693, 59))
    """

    name = "world"
    roles: ClassVar[Mapping[str, str]] = {
        "system": "System",
        "human": "User",
        "ai": "Assistant",
        "tool": "User",
    }
    stops: ClassVar[tuple[str, ...]] = ()
    sampling: ClassVar[Mapping[str, float]] = {
        "temperature": 1.0,
        "top_p": 0.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "penalty_decay": 0.996,
    }


class G1Template(WorldTemplate):
    """The chat format of the RWKV-7 G1 models: World's, with thoughts.

    After ``RWKV-v7/RWKV7-G1x-templates.txt`` in BlinkDL/RWKV-LM; the sampling is that of the
    models' card.

    Example:
        >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
        >>> G1Template(WorldTokenizer()).thought_ids(False)
        [295, 35762, 5439, 35762]
    """

    name = "g1"
    efforts: ClassVar[Mapping[str, str]] = {
        "low": " (think a bit)",
        "medium": " (think)",
        "high": " (think a lot)",
    }
    sampling: ClassVar[Mapping[str, float]] = {
        "temperature": 1.0,
        "top_p": 0.5,
        "presence_penalty": 2.0,
        "frequency_penalty": 0.1,
        "penalty_decay": 0.99,
    }


class DemoTemplate(WorldTemplate):
    """The format of the demo model: World's, but a blank line ends an answer."""

    name = "demo"
    stops: ClassVar[tuple[str, ...]] = ("\n\n",)
    sampling: ClassVar[Mapping[str, float]] = {"temperature": 1.0, "top_p": 0.3}


TEMPLATES: Mapping[str, type[ChatTemplate]] = {
    template.name: template for template in (WorldTemplate, G1Template, DemoTemplate)
}
"""The templates that have a name."""


@functools.cache
def _forged_turn(roles: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the blank lines in an answer that stand before a role and a colon."""
    words = "|".join(map(re.escape, roles))
    return re.compile(rf"\n(?:[^\S\n]*\n)+(?=(?:{words}):)")


def _unfinished(name: str | None, arguments: str | None) -> str:
    """Returns a call that was cut off, as far as it came; without a name it is all there."""
    if name is None:
        return arguments or ""
    return f'{{"name":{json.dumps(name, ensure_ascii=False)},"arguments":{arguments or ""}'
