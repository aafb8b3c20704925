"""Makes a chat model's call ready for the engine, and its answer ready for LangChain.

It sends nothing itself. The state behind an answer is not settled on what was sampled: it stands
for the message that the caller gets, as the template writes that message when it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata

from langchain_rwkv_state.engine import Done, Engine, Request, RequestHandle, Thought
from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.prompt.answer_message import AnswerStream, read_answer
from langchain_rwkv_state.prompt.call_options import Ask
from langchain_rwkv_state.prompt.markers import STATE_KEY
from langchain_rwkv_state.prompt.plan import PromptPlan
from langchain_rwkv_state.prompt.template import ChatTemplate
from langchain_rwkv_state.prompt.tools import ToolFormat


@dataclass(frozen=True)
class ChatPlan:
    """A call on its way to the engine.

    Attributes:
        engine: Answers it.
        template: Wrote it down.
        reading: What is read.
        request: What the engine is asked for.
        tools: How calls are written, where an answer may hold some.
        held: Whether the answer is held to a form from its first token on.
    """

    engine: Engine
    template: ChatTemplate
    reading: PromptPlan
    request: Request
    tools: ToolFormat | None
    held: bool

    @classmethod
    def of(
        cls,
        engine: Engine,
        template: ChatTemplate,
        reading: PromptPlan,
        request: Request,
        ask: Ask,
        constraint: Constraint | None,
    ) -> ChatPlan:
        """Returns the plan of a call.

        Args:
            engine: Will answer it.
            template: Writes down what is read and answered.
            reading: What is read.
            request: A plain request for a completion of it, which is made a chat's.
            ask: What is asked for.
            constraint: What decoding is held to.

        Raises:
            ValueError: An answer that is to be continued cannot be held to JSON, or a stop text
                leaves no call of a tool.
        """
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
        return cls(engine, template, reading, chat, tools, held)

    def submit(self) -> RequestHandle:
        """Hands the call to the engine, which answers it in time."""
        return self.engine.submit(self.request)

    def message(self, done: Done) -> AIMessage:
        """Returns the whole answer."""
        text = self.reading.continued + done.text
        answer = read_answer(text, self.tools, called=self.held)
        return answer.message(thought=done.thought)

    def about(self, done: Done, ref: str, *, model: str) -> tuple[dict[str, Any], UsageMetadata]:
        """Returns what an answer's message says of it: its metadata and its usage.

        Args:
            done: The answer.
            ref: The state behind it.
            model: The model's name.
        """
        metadata = {
            "model_name": model,
            "template": self.template.name,
            "sampling": asdict(self.request.sampling),
            "finish_reason": done.finish_reason,
            STATE_KEY: ref,
        }
        known = self.reading.base.n_tokens
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
        """Returns what makes chunks of the answer's pieces."""
        return AnswerStream(self.tools, self.reading.continued, called=self.held)


def _thought(
    reading: PromptPlan, ask: Ask, template: ChatTemplate, *, held: bool
) -> Thought | None:
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
