"""Asks for a chat's answer, and turns what the model says into what LangChain hears.

An answer comes in pieces, and calls in it are told from text as they come: what may still become
the opening of a call is held back, and a call's arguments are handed on as they are written. It
relies on calls being compact JSON, as the constraint on decoding sees to. A call that was cut off
stays cut off: LangChain's lenient JSON would make a whole one of it, with arguments that nobody
gave. The state behind an answer is not settled on what was sampled: it stands for the message that
the caller gets, as the template writes that message when it comes back.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from langchain_rwkv_state.engine import Delta, Done, Request, Thought, TokenLogprob
from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.prompt.call_options import Ask
from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.prompt.logprobs import ContentLogprobs, logprobs_metadata
from langchain_rwkv_state.prompt.markers import STATE_KEY
from langchain_rwkv_state.prompt.plan import PromptPlan
from langchain_rwkv_state.prompt.template import ChatTemplate
from langchain_rwkv_state.prompt.tools import ToolFormat

_NAME = re.compile(r'\{"name":("(?:[^"\\]|\\.)*"),"arguments":')
_CUT = "the answer ended before the call did, or Python reads no such JSON"


@dataclass(frozen=True)
class ChatCall:
    """A call of a chat model: what the engine is asked for, and how its answer is read.

    Attributes:
        template: Wrote it down.
        plan: What is read.
        request: What the engine is asked for.
        tools: How calls are written, where an answer may hold some.
        held: Whether the answer is held to a form from its first token on.
    """

    template: ChatTemplate
    plan: PromptPlan
    request: Request
    tools: ToolFormat | None
    held: bool

    @classmethod
    def of(
        cls,
        template: ChatTemplate,
        planned: PromptPlan,
        request: Request,
        ask: Ask,
        constraint: Constraint | None,
    ) -> ChatCall:
        """Returns the call that a plain request becomes.

        Args:
            template: Writes down what is read and answered.
            planned: What is read.
            request: A plain request for a completion of it, which is made a chat's.
            ask: What is asked for.
            constraint: What decoding is held to.

        Raises:
            ValueError: An answer that is to be continued cannot be held to JSON, or a stop text
                leaves no call of a tool.
        """
        tools = template.tools if ask.may_call else None
        held = constraint is not None and constraint.holds_at_once
        if held and planned.continued:
            raise ValueError(
                "The last message is an answer's beginning, and tool_choice or response_format "
                "holds the answer to JSON from its beginning: leave one of them out."
            )

        stop = tuple(dict.fromkeys((*template.stops, *request.stop)))
        if constraint is not None and constraint.triggers:
            opening = template.tools.begins[0]
            taken = next((text for text in request.stop if text in opening), None)
            if taken is not None:
                raise ValueError(
                    f"The stop text {taken!r} stands in what calls of tools begin with "
                    f"({opening!r}), so that none could be made: leave it out, or the tools."
                )

        def kept(thought: str, text: str) -> Sequence[int]:
            said = read_answer(text, tools, called=held).canonical(template)
            return template.answer_ids(said, thought)

        def canonical(text: str) -> Sequence[int]:
            return kept("", text)

        thought = _thought(planned, ask, template, held=held)
        chat = replace(
            request,
            prompt=planned.ids if planned.prompt is None else planned.prompt,
            settled=None if planned.prompt is None else planned.ids,
            stop=stop,
            roles=template.turn_roles,
            strip=True,
            canonical=canonical,
            canonical_thought=kept if thought is not None and thought.keep else None,
            thought=thought,
            continued=planned.continued,
            constraint=constraint,
        )
        return cls(template, planned, chat, tools, held)

    def message(self, done: Done) -> AIMessage:
        """Returns the whole answer."""
        text = self.plan.continued + done.text
        answer = read_answer(text, self.tools, called=self.held)
        return answer.message(thought=done.thought)

    def logprobs(self, done: Done, message: AIMessage) -> list[TokenLogprob]:
        """Returns the tokens that have a part in the content of a whole answer's message."""
        content = ContentLogprobs(len(self.plan.continued))
        content.add(done.logprobs or ())
        return content.take(len(message.text))

    def about(
        self, done: Done, ref: str, *, model: str, logprobs: Sequence[TokenLogprob] = ()
    ) -> tuple[dict[str, Any], UsageMetadata]:
        """Returns what an answer's message says of it: its metadata and its usage.

        Args:
            done: The answer.
            ref: The state behind it.
            model: The model's name.
            logprobs: Tokens that it says, too, how likely they were, where that was asked for.
        """
        metadata = {
            "model_name": model,
            "template": self.template.name,
            "sampling": asdict(self.request.sampling),
            "finish_reason": done.finish_reason,
            STATE_KEY: ref,
        }
        if self.request.logprobs is not None:
            metadata |= logprobs_metadata(logprobs)
        known = self.plan.base.n_tokens
        read = known + len(self.request.prompt)
        usage = UsageMetadata(
            input_tokens=read,
            output_tokens=done.answer_tokens,
            total_tokens=read + done.answer_tokens,
            input_token_details=InputTokenDetails(cache_read=known + done.reused),
        )
        if done.thought is not None:
            usage["output_token_details"] = OutputTokenDetails(reasoning=done.thought_tokens)
        return metadata, usage

    def stream(self) -> AnswerStream:
        """Returns what makes chunks of the answer's events."""
        return AnswerStream(self.tools, self.plan.continued, called=self.held)


def _thought(
    planned: PromptPlan, ask: Ask, template: ChatTemplate, *, held: bool
) -> Thought | None:
    """Returns how a thought is delimited that may stand before the answer."""
    if planned.continued or not template.thinks:
        return None
    if planned.prompt is not None:
        thinks = bool(ask.reasoning)
        closing = "</think>" if thinks else ""
        return Thought(opening=">", closing=closing, keep=thinks and ask.keep_reasoning)
    if held:
        return None
    # Nobody asked; these models may think all the same.
    return Thought("<think>", "</think>", keep=ask.keep_reasoning, asked=False)


@dataclass(frozen=True)
class Answer:
    """An answer taken apart.

    Attributes:
        text: What is said in words.
        calls: Names and arguments of tools that are called.
        cut: Name and JSON text so far of a call that was cut off; without a name, all of it.
    """

    text: str
    calls: tuple[tuple[str, dict[str, object]], ...] = ()
    cut: tuple[str | None, str] | None = None

    def message(self, *, thought: str | None = None) -> AIMessage:
        """Returns the answer as LangChain has it; each call gets an id of its own."""
        calls = [tool_call(name=name, args=args, id=_call_id()) for name, args in self.calls]
        return self._message(calls, thought)

    def canonical(self, template: ChatTemplate) -> str:
        """Returns the text that a template writes for the answer when it is read again."""
        calls = [ToolCall(name=name, args=args, id=None) for name, args in self.calls]
        return template.text(self._message(calls, None))

    def _message(self, calls: list[ToolCall], thought: str | None) -> AIMessage:
        broken = []
        if self.cut is not None:
            name, arguments = self.cut
            broken = [invalid_tool_call(name=name, args=arguments, id=_call_id(), error=_CUT)]
        return AIMessage(
            content=self.text,
            tool_calls=calls,
            invalid_tool_calls=broken,
            additional_kwargs={REASONING_KEY: thought} if thought else {},
        )


def read_answer(text: str, tools: ToolFormat | None, *, called: bool = False) -> Answer:
    r"""Takes an answer apart.

    Args:
        text: All of it.
        tools: How calls are written; ``None`` where none is to be looked for.
        called: Whether words were not possible, so that half an opening is none.

    Example:
        >>> read_answer('Well.\n```json\n{"name":"f","arguments":{"x":1}}\n```', ToolFormat())
        Answer(text='Well.', calls=(('f', {'x': 1}),), cut=None)
    """
    if tools is None:
        return Answer(text)
    reader = CallReader(tools)
    said = reader.push(text) + reader.end()
    if not reader.inside:
        return Answer("" if called and tools.begun(said) else said)
    calls = []
    for name, arguments in reader.calls:
        try:
            calls.append((name, json.loads(arguments)))
        except (ValueError, RecursionError):  # a number of thousands of digits, a list without end
            return Answer(said.rstrip(), tuple(calls), (name, arguments))
    return Answer(said.rstrip(), tuple(calls), reader.open_call)


class CallReader:
    """Finds the calls in an answer that comes in pieces.

    Args:
        tools: How calls are written.

    Attributes:
        calls: Names of the calls that are whole, and their arguments as JSON.
    """

    def __init__(self, tools: ToolFormat) -> None:
        self.calls: list[tuple[str, str]] = []
        self._openings = tools.begins
        self._text = ""  # not handed on: it may become an opening, or did
        self._begun = False  # whether text was handed on, so that a call needs a line of its own
        self._inside = False
        self._body = ""  # from the first call that is not whole on, or from its arguments on
        self._name: str | None = None
        self._scan = _Scan()

    @property
    def inside(self) -> bool:
        """Whether a call was begun."""
        return self._inside

    @property
    def open_call(self) -> tuple[str | None, str] | None:
        """Name and arguments so far of a call that is not whole; without a name, all of it."""
        if self._name is not None:
            return self._name, self._body
        begun = self._body if self._inside and not self.calls else ""
        return (None, begun) if begun else None

    def push(self, text: str) -> str:
        """Takes the next piece; returns what of it is sure to be text."""
        self._text += text
        said = ""
        if self._inside:
            self._body += text
        else:
            found = self._find()
            sure = len(self._text) - self._may_open() if found is None else found[0]
            said, self._text = self._text[:sure], self._text[sure:]
            self._begun = self._begun or bool(said)
            if found is not None:
                self._inside = True
                self._body = self._text[found[1] - sure :]
        if self._inside:
            self._read_calls()
        return said

    def end(self) -> str:
        """Returns text that was held back, now that no more comes."""
        rest, self._text = "" if self._inside else self._text, ""
        return rest

    def _find(self) -> tuple[int, int] | None:
        """Returns where the text ends and where the first call begins."""
        for opening in self._openings:
            at = self._text.find(opening)
            while at >= 0:
                if self._starts_line(at):
                    return max(at - 1, 0), at + len(opening) - len('{"name":"')
                at = self._text.find(opening, at + 1)
        return None

    def _starts_line(self, at: int) -> bool:
        return self._text[at - 1] == "\n" if at else not self._begun

    def _may_open(self) -> int:
        """Returns how many characters at the end may be the beginning of an opening."""
        lead = ("\n",) if self._begun else ("\n", "")
        return max(
            (
                size
                for before in lead
                for opening in self._openings
                for size in range(1, min(len(before + opening), len(self._text) + 1))
                if self._text.endswith((before + opening)[:size])
                and (before or size == len(self._text))
            ),
            default=0,
        )

    def _read_calls(self) -> None:
        while True:
            if self._name is None:
                self._body = self._body.lstrip("},")  # what stands between two calls
                found = _NAME.match(self._body)
                if found is None:
                    return
                self._name = json.loads(found[1])
                self._body = self._body[found.end() :]
                self._scan = _Scan()
            if not self._scan.read(self._body):
                return
            end = self._scan.at
            self.calls.append((self._name, self._body[:end]))
            self._body, self._name = self._body[end:], None


class _Scan:
    """Looks for the end of an object in JSON that comes in pieces."""

    def __init__(self) -> None:
        self.at = 0
        self._depth = 0
        self._in_text = self._escaped = False

    def read(self, body: str) -> bool:
        """Reads on; says whether the object is whole, which ends before `at`."""
        while self.at < len(body):
            char = body[self.at]
            self.at += 1
            if self._in_text:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_text = False
            elif char == '"':
                self._in_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return True
        return False


class AnswerStream:
    """Turns the pieces of an answer into chunks of a message.

    A call that is cut off is what LangChain makes of its pieces; only the answer's
    ``finish_reason`` tells it.

    Args:
        tools: How calls are written; ``None`` where none is to be looked for.
        begun: Text that the answer begins with, to be handed on with its first piece.
        called: Whether words are not possible, so that half an opening is none.
    """

    def __init__(self, tools: ToolFormat | None, begun: str = "", *, called: bool = False) -> None:
        self._lead = begun
        self._tools = tools
        self._called = called
        self._reader = None if tools is None else CallReader(tools)
        self._begun: list[str] = []  # ids of the calls
        self._sent = 0  # characters of the last call's arguments
        self._held = ""  # white space that may stand before a call
        self._logprobs = ContentLogprobs(len(begun))

    def push(self, text: str, thought: str = "") -> list[AIMessageChunk]:
        """Takes the next piece; returns chunks, none where all of it is held back."""
        chunks = []
        if thought:
            chunks.append(AIMessageChunk(content="", additional_kwargs={REASONING_KEY: thought}))
        text, self._lead = self._lead + text, ""
        if self._reader is None:
            return [*chunks, AIMessageChunk(content=text)] if text else chunks
        said = self._held + self._reader.push(text)
        sure = said.rstrip()
        self._held = said[len(sure) :]
        if sure:
            chunks.append(AIMessageChunk(content=sure))
        return chunks + self._calls()

    def take(self, event: Delta | Done) -> list[AIMessageChunk]:
        """Takes the engine's next event; returns chunks, but for the last, which tells the end."""
        if isinstance(event, Done):
            return self._with_logprobs(self.end())
        self._logprobs.add(event.logprobs)
        return self._with_logprobs(self.push(event.text, event.thought))

    def end(self) -> list[AIMessageChunk]:
        """Returns chunks of what was held back."""
        chunks = self.push("") if self._lead else []
        rest = "" if self._reader is None else self._reader.end()
        text = self._held + rest if rest else ""
        if self._called and self._tools is not None and self._tools.begun(text):
            text = ""
        return [*chunks, AIMessageChunk(content=text)] if text.strip() else chunks

    def _with_logprobs(self, chunks: list[AIMessageChunk]) -> list[AIMessageChunk]:
        """Returns chunks that say how likely the tokens were that begin in their content."""
        for chunk in chunks:
            if begun := self._logprobs.take(len(chunk.content)):
                chunk.response_metadata = logprobs_metadata(begun)
        return chunks

    def _calls(self) -> list[AIMessageChunk]:
        reader = self._reader
        if reader is None:
            return []
        open_call = reader.open_call
        known = [*reader.calls, *([] if open_call is None else [open_call])]
        chunks = []
        for index, (name, arguments) in enumerate(known):
            if name is None or index < len(self._begun) - 1:
                continue
            if index == len(self._begun):
                self._begun.append(_call_id())
                self._sent = 0
                chunks.append(self._chunk(index, name, ""))
            if len(arguments) > self._sent:
                chunks.append(self._chunk(index, None, arguments[self._sent :]))
                self._sent = len(arguments)
        return chunks

    def _chunk(self, index: int, name: str | None, arguments: str) -> AIMessageChunk:
        call_id = self._begun[index] if name is not None else None
        part = tool_call_chunk(name=name, args=arguments, id=call_id, index=index)
        return AIMessageChunk(content="", tool_call_chunks=[part])


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
