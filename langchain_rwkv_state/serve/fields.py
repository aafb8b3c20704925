"""Holds requests to the fields that there are: what one says and we cannot do is an error.

A body's class lists the fields that are read, those that change nothing and are let pass, and those
that OpenAI has and this server has not. The easy mistake is a field that is ignored in silence, so
that a client believes it was heeded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from langchain_rwkv_state.serve.errors import ApiError, unsupported


class Refused(NamedTuple):
    """A field that this server cannot heed.

    Attributes:
        why: What stands behind "it is not supported here".
        neutral: Values that ask for nothing, beside ``null``.
    """

    why: str
    neutral: tuple[Any, ...] = ()


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    passed: ClassVar[frozenset[str]] = frozenset()
    """Fields that change no answer and promise nothing."""
    refused: ClassVar[Mapping[str, Refused]] = {}
    """Fields that would, and that this server cannot heed."""

    @model_validator(mode="before")
    @classmethod
    def _heeded(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if name in cls.model_fields or not cls._without_meaning(name, value)
        }

    @classmethod
    def _without_meaning(cls, name: str, value: Any) -> bool:
        """Says that a field asks for nothing.

        Raises:
            ApiError: It asks for what there is not.
        """
        if name in cls.passed or (name in cls.refused and value is None):
            return True
        if name in cls.refused:
            known = cls.refused[name]
            if any(type(value) is type(same) and value == same for same in known.neutral):
                return True
            raise unsupported(name, known.why)
        names = sorted({*cls.model_fields, *cls.refused, *cls.passed})
        # Of a long name all takes long, and it is no misspelling.
        near = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(names)}."
        raise ApiError(
            400,
            f"The request has a field {name!r:.100} that nobody knows: {hint}",
            code="unknown_parameter",
            param=name[:100],
        )


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    refused = {
        "include_obfuscation": Refused("events are sent at their own length", (False,)),
    }

    include_usage: bool | None = None


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_texts)]
"""One text or several."""


class Sampled(Body):
    """A body that asks for sampled text: what all requests for answers have in common."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_decay: float | None = None
    seed: int | None = None
    stop: Texts | None = None

    def sampling(self) -> dict[str, Any]:
        """Returns what was set of `ChatRWKV`'s options of a call."""
        names = (
            *("temperature", "top_p", "top_k", "seed", "stop"),
            *("presence_penalty", "frequency_penalty", "penalty_decay"),
        )
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}


class Completing(Sampled):
    """A body that asks for completions: what chats and texts have in common."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it cost.

        Raises:
            ApiError: It is no stream.
        """
        if self.stream_options is None:
            return False
        if not self.stream:
            raise ApiError(
                400, "stream_options goes with stream=true alone.", param="stream_options"
            )
        return bool(self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """Returns what was set of `ChatRWKV`'s options of a call."""
        most = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return super().sampling() | most
