"""Reads what the Ray application is told: texts of a command line, or values of a YAML file.

An argument that nobody knows is an error that gives the nearest name. Paths are made whole here, as
replicas work in directories of Ray's own; the easy mistake is a path that only this machine has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from langchain_rwkv_state._arguments import unknown_setting
from langchain_rwkv_state.engine import Limits as EngineLimits
from langchain_rwkv_state.ray.shared import require_shared, whole_path
from langchain_rwkv_state.serve.settings import Limits, ServeSettings
from langchain_rwkv_state.store.clock import read_duration

_OF_CHAT = (
    "slots",
    "prefill_budget",
    "max_queue",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "presence_penalty",
    "frequency_penalty",
    "penalty_decay",
    "reasoning",
    "timeout",
)
"""What is `ChatRWKV`'s to check."""


class RayArguments(BaseModel):
    """What is served, and on how many replicas.

    What is not described here is called as in `ChatRWKV`, in ``rwkv-state serve`` and in Ray's own
    ``@serve.deployment``, and means what it means there.

    Raises:
        ValueError: There is no such argument, or it cannot have that value.

    Example:
        >>> read = RayArguments.read({"store": "redis://redis:6379/0", "slots": "32"})
        >>> read.target_ongoing, read.most_ongoing
        (16.0, 40)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = "demo"
    """``demo``, a file that every node has, or ``org/repo/file.pth`` on a hub."""
    store: str = Field(repr=False)
    """Where all replicas keep conversations: ``redis://…``; a directory on a cluster of one node.

    ``***`` for its password is `$RWKV_STATE_PASSWORD`, which is to be set on every node."""
    strategy: str = "auto"
    tokenizer: str | None = None
    template: str | None = None
    name: str | None = None
    ttl: str | None = None
    api_key_file: str | None = None
    """Must be on every node."""
    requests: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    body_bytes: int = Field(default=Limits.body_bytes, ge=1)

    slots: int = Field(default=EngineLimits.slots, ge=1)
    """Conversations that one replica computes at once."""
    prefill_budget: int | None = None
    max_queue: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_decay: float | None = None
    reasoning: str | None = None
    timeout: float | None = None

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Requests in work and waiting, a replica, that scaling aims at; ``None`` for half the slots.

    With more, answers get slower before a replica is added; with fewer, slots stand empty."""
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    """The most that Ray hands to one replica: ``None`` for its slots and a quarter more, so that a
    slot that is free is filled at once. The others wait where any replica can take them."""
    max_queued_requests: int = Field(default=1024, ge=-1)
    """The most that wait so at each proxy; one more is a 503. -1 for no limit."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)
    num_cpus: float = Field(default=1.0, ge=0)
    """Of each replica, for Ray's placing; PyTorch takes so many threads."""
    num_gpus: float = Field(default=0.0, ge=0)
    drain_seconds: float = Field(default=60.0, gt=0)
    """How long the requests of a replica that is stopped may go on."""
    health_check_period_s: float = Field(default=2.0, gt=0)
    health_check_timeout_s: float = Field(default=30.0, gt=0)
    affinity: bool = False
    """Whether requests with one value of the header ``x-session-id`` go to one replica while it is
    there. Ray's router for that is experimental, and no answer depends on it: what it saves is
    reading a state from the store. `$RAY_SERVE_SESSION_ID_HEADER_KEY` names another header."""

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Self:
        """Reads arguments by their names.

        Raises:
            ServeError: The store is one that replicas cannot share.
            ValueError: There is no such argument, or it cannot have that value.
        """
        for name in args:
            if name not in cls.model_fields:
                raise ValueError(unknown_setting(name, cls.model_fields, of="The Ray application"))
        found = cls.model_validate({"store": "", **args})
        require_shared(found.store)
        return found

    @field_validator("ttl")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        if value is not None:
            read_duration(value)
        return value

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}"
            )
        return self

    @property
    def target_ongoing(self) -> float:
        """What scaling aims at."""
        return self.target_ongoing_requests or max(1.0, self.slots / 2)

    @property
    def most_ongoing(self) -> int:
        """The most requests that one replica is handed."""
        return self.max_ongoing_requests or self.slots + max(1, self.slots // 4)

    def serve_settings(self) -> ServeSettings:
        """Returns what each replica's server is started with."""
        options = {name: getattr(self, name) for name in _OF_CHAT}
        options = {name: value for name, value in options.items() if value is not None}
        if options.get("reasoning") == "off":
            options["reasoning"] = False
        key_file = self.api_key_file
        return ServeSettings(
            model=whole_path(self.model),
            strategy=self.strategy,
            tokenizer=None if self.tokenizer is None else whole_path(self.tokenizer),
            template=self.template,
            options=options,
            name=self.name or Path(self.model).stem,
            store=whole_path(self.store, always=True),
            ttl=None if self.ttl is None else read_duration(self.ttl),
            api_key_file=None if key_file is None else whole_path(key_file, always=True),
            limits=Limits(self.requests, self.tokens_per_minute, self.body_bytes),
            drain_seconds=self.drain_seconds,
        )
