"""One call of the chat model, ready to be sent: what is read, what is asked, how it is heard.

Between what LangChain passes and what the engine takes; it sends nothing itself. The easy mistake
is to let the engine settle a state on what was sampled: it stands for the message that the caller
gets, as the template writes that message when it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage

from langchain_rwkv_state.engine import Done, Request, Thought
from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.prompt.answer import AnswerStream, read_answer
from langchain_rwkv_state.prompt.ask import Ask
from langchain_rwkv_state.prompt.plan import Reading
from langchain_rwkv_state.prompt.template import ChatTemplate
from langchain_rwkv_state.prompt.tools import ToolFormat

if TYPE_CHECKING:
    from langchain_rwkv_state.loaded import Loaded


@dataclass(frozen=True)
class ChatPlan:
    """A call on its way to the engine.

    Attributes:
        loaded: The model.
        reading: What is read.
        request: What the engine is asked for.
        tools: How calls are written, where an answer may hold some.
        held: Whether the answer is held to a form from its first token on.
    """

    loaded: Loaded
    reading: Reading
    request: Request
    tools: ToolFormat | None
    held: bool

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        reading: Reading,
        request: Request,
        ask: Ask,
        constraint: Constraint | None,
    ) -> ChatPlan:
        """Returns the plan of a call.

        Args:
            loaded: The model.
            reading: What is read.
            request: A plain request for a completion of it, which is made a chat's.
            ask: What is asked for.
            constraint: What decoding is held to.

        Raises:
            ValueError: An answer that is to be continued cannot be held to JSON, or a stop text
                leaves no call of a tool.
        """
        template = loaded.template
        tools = template.tools if ask.may_call else None
        held = constraint is not None and constraint.holds_at_once
        if held and reading.continued:
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

        thought = _thought(reading, ask, template, held=held)
        chat = replace(
            request,
            prompt=reading.ids if reading.prompt is None else reading.prompt,
            settled=None if reading.prompt is None else reading.ids,
            stop=stop,
            roles=template.turn_roles,
            strip=True,
            canonical=canonical,
            canonical_thought=kept if thought is not None and thought.keep else None,
            thought=thought,
            continued=reading.continued,
            constraint=constraint,
        )
        return cls(loaded, reading, chat, tools, held)

    def message(self, done: Done) -> AIMessage:
        """Returns the whole answer."""
        text = self.reading.continued + done.text
        answer = read_answer(text, self.tools, called=self.held)
        return answer.message(thought=done.thought)

    def stream(self) -> AnswerStream:
        """Returns what makes chunks of the answer's pieces."""
        return AnswerStream(self.tools, self.reading.continued, called=self.held)


def _thought(reading: Reading, ask: Ask, template: ChatTemplate, *, held: bool) -> Thought | None:
    """Returns how a thought is delimited that may stand before the answer."""
    if reading.continued or not template.thinks:
        return None
    if reading.prompt is not None:
        thinks = bool(ask.reasoning)
        closing = "</think>" if thinks else ""
        return Thought(opening=">", closing=closing, keep=thinks and ask.keep_reasoning)
    if held:
        return None
    # Nobody asked; these models may think all the same.
    return Thought("<think>", "</think>", keep=ask.keep_reasoning, asked=False)
