"""What a server is started with, as values: they travel to worker processes and to replicas.

Nothing is opened or loaded here; `tenants` does that with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.store.clock import TTL


class ServeError(RWKVStateError):
    """A server cannot be started as it was told to."""


@dataclass(frozen=True)
class Limits:
    """What one key may ask of the server; ``None`` for no limit.

    Attributes:
        requests: At once; one more is a 429.
        tokens_per_minute: Of prompts that had to be read, and of answers.
        body_bytes: Of one request's body; more is a 413.

    Raises:
        ServeError: A number is less than 1.
    """

    requests: int | None = None
    tokens_per_minute: int | None = None
    body_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ServeError(f"{name} is {value!r}: give a number from 1 on.")


@dataclass(frozen=True)
class ServeSettings:
    """What a server is started with.

    Attributes:
        model: As `ChatRWKV.model`.
        strategy: As `ChatRWKV.strategy`.
        tokenizer: As `ChatRWKV.tokenizer`.
        template: As `ChatRWKV.template`.
        options: Other settings of `ChatRWKV`, such as ``temperature``, ``max_tokens``, ``slots``.
        name: What clients call the model; ``None`` for its name without a path and a suffix.
        store: Where conversations are kept: a directory or a URL; ``None`` for the user's own.
        ttl: How long a response or a conversation can be gone on from, from its last use on;
            ``None`` for the store's default.
        api_key_file: Names of tenants and their keys; ``None`` for one tenant without a key.
        limits: Of each key that sets no others.
        prefix_cache_bytes: Of states in memory that save reading what was read before, for all
            tenants, in each process; 0 for none, ``None`` for 5 % of the memory that is free.
        drain_seconds: How long what runs may go on once the server was told to stop.
        open_tenants: So many tenants' stores stay open though nobody asks.
        idle_seconds: A tenant's store is closed when nobody asked for so long.

    Raises:
        ServeError: A value is not possible.
    """

    model: str = "demo"
    strategy: str = "auto"
    tokenizer: Any = None
    template: Any = None
    options: dict[str, Any] | None = None
    name: str | None = None
    store: str | None = None
    ttl: TTL = None
    api_key_file: str | None = None
    limits: Limits = Limits()
    prefix_cache_bytes: int | None = None
    drain_seconds: float = 30.0
    open_tenants: int = 64
    idle_seconds: float = 600.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("drain_seconds", "idle_seconds"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ServeError(f"{name} is {value!r}: give seconds, from 0 on.")
        if self.prefix_cache_bytes is not None and self.prefix_cache_bytes < 0:
            raise ServeError(
                f"prefix_cache_bytes is {self.prefix_cache_bytes!r}: give bytes, 0 for no cache."
            )
        if self.open_tenants < 1:
            raise ServeError(f"open_tenants is {self.open_tenants!r}: give a number from 1 on.")

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.name or Path(self.model).stem
