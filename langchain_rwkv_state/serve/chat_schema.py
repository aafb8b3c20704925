"""Defines the body of a request for a chat completion, and reads `ChatRWKV`'s options from it.

Beside OpenAI's fields it has two of this package's own, ``top_k`` and ``penalty_decay``. Where a
field is left out, the server's setting holds, and not OpenAI's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from langchain_rwkv_state.serve.errors import ApiError, unsupported
from langchain_rwkv_state.serve.fields import Completing, Refused

Effort = Literal["none", "minimal", "low", "medium", "high"]

_EFFORTS: Mapping[str, Any] = {"none": False, "minimal": "low"}


def reasoning_options(effort: Effort | None) -> dict[str, Any]:
    """Returns `ChatRWKV`'s option for how much a model is to think."""
    return {} if effort is None else {"reasoning": _EFFORTS.get(effort, effort)}


class ChatBody(Completing):
    """A request for a chat completion."""

    passed = frozenset(
        {
            *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
            *("prediction", "safety_identifier", "store", "user"),
        }
    )
    refused: ClassVar[Mapping[str, Refused]] = {
        "audio": Refused("the model writes text.", ()),
        "function_call": Refused("it was given up by OpenAI, too; use tool_choice.", ("auto",)),
        "functions": Refused("it was given up by OpenAI, too; use tools.", ([],)),
        "logit_bias": Refused("no token's odds can be changed.", ({},)),
        "modalities": Refused("the model writes text.", (["text"],)),
        "moderation": Refused("nothing is moderated."),
        "n": Refused("a request has one answer; send it several times.", (1,)),
        "service_tier": Refused("all requests are served alike.", ("auto", "default")),
        "verbosity": Refused("say in a message how long an answer is to be.", ("medium",)),
        "web_search_options": Refused("nothing is searched; give a tool that does."),
    }

    messages: list[Any]
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def options(self) -> dict[str, Any]:
        """Returns `ChatRWKV`'s options of a call.

        Raises:
            ApiError: Fields contradict each other, or ask for what there is not.
        """
        found = self.sampling()
        most = self.max_completion_tokens
        if most is not None:
            if self.max_tokens not in (None, most):
                raise ApiError(
                    400,
                    f"max_tokens={self.max_tokens} and max_completion_tokens={most} mean the same: "
                    "send one of them.",
                    param="max_tokens",
                )
            found["max_tokens"] = most
        found |= tool_options(self.tools or [], self.tool_choice)
        if self.tools and self.parallel_tool_calls is not None:
            found["parallel_tool_calls"] = self.parallel_tool_calls
        if self.response_format is not None:
            found["response_format"] = self.response_format
        found |= reasoning_options(self.reasoning_effort)
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs=true alone.", param="top_logprobs")
        if self.logprobs:
            found["logprobs"] = True
            found["top_logprobs"] = self.top_logprobs or 0
        return found


def tool_options(tools: Sequence[Mapping[str, Any]], choice: Any) -> dict[str, Any]:
    """Returns `ChatRWKV`'s options for tools, as a chat completion has them.

    Args:
        tools: OpenAI's.
        choice: ``none``, ``auto``, ``required``, a function, or some tools that are allowed.

    Raises:
        ApiError: A tool is no function, or the choice is none of these.
    """
    for at, tool in enumerate(tools):
        if tool.get("type") != "function":
            kind = tool.get("type")
            raise unsupported(f"tools[{at}].type", f"tools are functions, got {kind!r:.100}.")
        _named(tool)
    if choice is None:
        return {"tools": [*tools]} if tools else {}
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return {"tools": [*tools], "tool_choice": choice} if tools or choice != "none" else {}
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return {"tools": [*tools], "tool_choice": {"type": "function", "function": _named(choice)}}
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools")
        mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
        given = allowed.get("tools") if isinstance(allowed, Mapping) else None
        if isinstance(given, list) and mode in ("auto", "required"):
            names = {_named(each)["name"] for each in given}
            kept = [tool for tool in tools if _named(tool)["name"] in names]
            if kept:
                return {"tools": kept, "tool_choice": mode}
    raise ApiError(
        400,
        f"tool_choice is none, auto, required, a function or allowed_tools of the request's, "
        f"got {choice!r:.100}.",
        param="tool_choice",
    )


def _named(tool: Any) -> Mapping[str, Any]:
    """Returns the function in a tool.

    Raises:
        ApiError: It has no name.
    """
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise ApiError(
            400, f"A function of tools needs a name: {tool!r:.100} has none.", param="tools"
        )
    return function
