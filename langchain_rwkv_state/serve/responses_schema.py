"""Says what a request for a response may hold, and what of it becomes options of a call.

Every field of OpenAI's is known here. One that cannot be honoured is refused by name, unless it has
the value that says nothing; one that only labels a request is taken and has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from langchain_rwkv_state.serve.chat_schema import Effort, reasoning_options, tool_options
from langchain_rwkv_state.serve.errors import ApiError, unsupported
from langchain_rwkv_state.serve.fields import Body, Refused, Sampled
from langchain_rwkv_state.store.rows import NAME_MAX

LOGPROBS = "message.output_text.logprobs"

_Summary = Literal["auto", "concise", "detailed"]


class ReasoningOptions(Body):
    """Whether a model is to think first, and how its thought is told."""

    effort: Effort | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None


class TextOptions(Body):
    """What form an answer's text is to have."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "verbosity": Refused("say in words how long an answer is to be.", ("medium",)),
    }

    format: dict[str, Any] | None = None


class ResponseRequest(Sampled):
    """A request for a response."""

    passed = frozenset(
        {
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
            "stream_options",
        }
    )
    refused: ClassVar[Mapping[str, Refused]] = {
        "background": Refused("answers are made while their connection is open.", (False,)),
        "context_management": Refused("a state has one size, with nothing to compact.", ([],)),
        "max_tool_calls": Refused("there are no built-in tools whose calls it could count."),
        "max_tokens": Refused("here it is called max_output_tokens."),
        "moderation": Refused("nothing is moderated."),
        "prompt": Refused("no prompt templates are kept; pass the text as instructions."),
        "response_format": Refused("here it is called text.format."),
        "service_tier": Refused("all requests are served alike.", ("auto", "default")),
    }

    input: Any = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    on_conflict: Literal["raise", "wait"] = "raise"
    store: bool | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    truncation: Literal["auto", "disabled"] | None = None

    def check(self) -> None:
        """Refuses what cannot be had.

        Raises:
            ApiError: There is something, which it names.
        """
        for place, name in enumerate(self.include or ()):
            if name != LOGPROBS:
                raise unsupported(f"include[{place}]", f"of {name!r:.100} nothing is kept.")
        if self.previous_response_id is not None and self.conversation is not None:
            raise ApiError(
                400,
                "previous_response_id and conversation are two places to go on from: pass one.",
                param="previous_response_id",
            )

    @property
    def kept(self) -> bool:
        """Whether the state behind the answer can be gone on from."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    @property
    def summarised(self) -> bool:
        """Whether a thought is told as its summary."""
        asked = self.reasoning
        return asked is not None and bool(asked.summary or asked.generate_summary)

    @property
    def conversation_name(self) -> str | None:
        """The conversation that the response is a turn of.

        Raises:
            ApiError: It is no name of one.
        """
        given = self.conversation
        if given is None:
            return None
        name = given.get("id") if isinstance(given, Mapping) else given
        if isinstance(name, str) and 1 <= len(name) <= NAME_MAX:
            return name
        raise ApiError(
            400,
            f"conversation is {given!r:.100}: pass its id, a text of 1 to {NAME_MAX} characters.",
            param="conversation",
        )

    def options(self) -> dict[str, Any]:
        """Returns the options of a call of `ChatRWKV`.

        Raises:
            ApiError: One cannot be had.
        """
        found = {**self.sampling(), "max_tokens": self.max_output_tokens}
        found |= tool_options([*map(_in_chat, self.tools or ())], _choice(self.tool_choice))
        if self.tools:
            found["parallel_tool_calls"] = self.parallel_tool_calls
        if self.text is not None and self.text.format is not None:
            found["response_format"] = _format(self.text.format)
        if self.reasoning is not None:
            found |= reasoning_options(self.reasoning.effort)
        if self.wants_logprobs:
            found |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return {name: value for name, value in found.items() if value is not None}

    def echo(self) -> dict[str, Any]:
        """Returns what a response repeats of its request."""
        conversation = self.conversation_name
        return {
            "background": False,
            "conversation": None if conversation is None else {"id": conversation},
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": self.reasoning.model_dump(exclude={"generate_summary"})
            if self.reasoning
            else {"effort": None, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.kept,
            "temperature": self.temperature,
            "text": {
                "format": (self.text and self.text.format) or {"type": "text"},
                "verbosity": "medium",
            },
            "tool_choice": "auto" if self.tool_choice is None else self.tool_choice,
            "tools": self.tools or [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
        }


def _in_chat(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tool, or the name of one, as a chat completion has it."""
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    known = ("name", "description", "parameters", "strict")
    function = {key: tool[key] for key in known if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _choice(given: Any) -> Any:
    """Returns the choice of a tool as a chat completion has it."""
    if not isinstance(given, Mapping):
        return given
    if given.get("type") == "allowed_tools" and isinstance(given.get("tools"), list):
        named = [_in_chat(tool) for tool in given["tools"] if isinstance(tool, Mapping)]
        allowed = {"mode": given.get("mode"), "tools": named}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return _in_chat(given)


def _format(given: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = given.get("type")
    if kind in ("text", "json_object"):
        return None if kind == "text" else {"type": kind}
    if kind == "json_schema":
        if not isinstance(given.get("schema"), Mapping):
            raise ApiError(400, "text.format.schema is missing.", param="text.format.schema")
        return {"type": kind, "json_schema": {k: v for k, v in given.items() if k != "type"}}
    raise unsupported(
        "text.format.type", f"it is text, json_object or json_schema, not {kind!r:.100}."
    )
