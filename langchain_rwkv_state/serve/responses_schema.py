"""Says what a request for a response may hold, and what of it becomes options of a call.

Every field of OpenAI's is known here. One that cannot be honoured is refused by name, unless it has
the value that says nothing; one that only labels a request is taken and has no effect.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from langchain_rwkv_state.serve.errors import ApiError, unsupported
from langchain_rwkv_state.store.settings import NAME_MAX

LOGPROBS = "message.output_text.logprobs"

_SAME = ("temperature", "top_p", "parallel_tool_calls")
_OURS = ("seed", "stop", "top_k", "presence_penalty", "frequency_penalty", "penalty_decay")
_EFFORTS: Mapping[str, Any] = {"none": False, "low": "low", "medium": "medium", "high": "high"}

_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "background": ((False,), "answers are made while the connection is open. Leave it out."),
    "prompt": ((), "no prompt templates are kept. Pass the text as instructions."),
    "max_tool_calls": ((), "there are no built-in tools whose calls it could count. Leave it out."),
    "context_management": (([],), "a state has one size, with nothing to compact. Leave it out."),
    "moderation": ((), "nothing is moderated here. Leave it out."),
    "service_tier": (("auto", "default"), "there is one tier. Leave it out."),
    "truncation": (("disabled", "auto"), "it is 'disabled' or 'auto', and nothing is cut off."),
}
"""Fields of OpenAI's by the values that say nothing, and why others cannot be had."""

_LABELS = (
    *("metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "stream_options"),
)


class Body(BaseModel):
    """A request: its fields have the types that JSON says, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name in given:
                if name not in cls.model_fields:
                    raise unknown_field(str(name), cls.model_fields)
        return given


def unknown_field(name: str, known: Mapping[str, Any]) -> ApiError:
    """Returns the error for a field that nobody knows, with the name that comes nearest."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ": leave it out."
    return ApiError(
        400, f"There is no field {name!r:.100} here{hint}", code="unknown_parameter", param=name
    )


class ReasoningOptions(Body):
    """Whether a model is to think first, and how its thought is told."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Body):
    """What form an answer's text is to have."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseRequest(Body):
    """A request for a response."""

    model: str
    input: Any = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    on_conflict: Literal["raise", "wait"] = "raise"
    store: bool | None = None
    stream: bool | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_decay: float | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    stream_options: dict[str, Any] | None = None
    background: bool | None = None
    prompt: Any = None
    max_tool_calls: int | None = None
    context_management: Any = None
    moderation: Any = None
    service_tier: str | None = None
    truncation: str | None = None

    def check(self) -> None:
        """Refuses what cannot be had.

        Raises:
            ApiError: There is something, which it names.
        """
        for name, (neutral, why) in _REFUSED.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise unsupported(name, why)
        for place, name in enumerate(self.include or ()):
            if name != LOGPROBS:
                raise unsupported(f"include[{place}]", f"of {name!r:.100} nothing is kept.")
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise unsupported("text.verbosity", "ask for short or long answers in words.")
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
    def told(self) -> bool:
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
        found = {name: getattr(self, name) for name in (*_SAME, *_OURS)}
        found["max_tokens"] = self.max_output_tokens
        if isinstance(self.stop, str):
            found["stop"] = [self.stop]
        if self.tools:
            found["tools"] = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(self.tools)]
        found["tool_choice"] = _choice(self.tool_choice)
        if self.text is not None and self.text.format is not None:
            found["response_format"] = _format(self.text.format)
        if self.reasoning is not None and self.reasoning.effort is not None:
            found["reasoning"] = _effort(self.reasoning.effort)
        if self.told:
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


def _tool(tool: Mapping[str, Any], at: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise unsupported(
            f"{at}.type",
            f"there is no built-in tool {kind!r:.100}. Pass functions, and run them yourself.",
        )
    if not isinstance(tool.get("name"), str):
        raise ApiError(400, f"{at}.name is missing: a function has one.", param=f"{at}.name")
    known = ("name", "description", "parameters", "strict")
    function = {key: tool[key] for key in known if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _choice(given: Any) -> Any:
    kind = given.get("type") if isinstance(given, Mapping) else given
    if kind in (None, "auto", "none", "required"):
        return kind
    if kind == "function" and isinstance(given, Mapping):
        return {"type": "function", "function": {"name": given.get("name")}}
    raise unsupported(
        "tool_choice", "it is 'auto', 'none', 'required', or {'type': 'function', 'name': ...}."
    )


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


def _effort(given: str) -> Any:
    if given not in _EFFORTS:
        raise unsupported("reasoning.effort", f"it is none, low, medium or high, not {given!r:.100}.")
    return _EFFORTS[given]
