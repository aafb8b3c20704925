"""What a server is started with, as values: they travel to worker processes and to replicas.

Nothing is opened or loaded here; `tenants` does that with them.
"""

from __future__ import annotations

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
    """

    requests: int | None = None
    tokens_per_minute: int | None = None
    body_bytes: int = 4 << 20


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
        ttl: How long the state of a response can be gone on from; ``None`` for the store's default.
        api_key_file: Names of tenants and their keys; ``None`` for one tenant without a key.
        limits: Of each key that sets no others.
        drain_seconds: How long what runs may go on once the server was told to stop.
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
    drain_seconds: float = 30.0

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.name or Path(self.model).stem
