"""Counts for Prometheus what the server does; ``/metrics`` shows it.

Each application has a registry of its own. Where several workers serve, `prometheus_client` keeps
every worker's figures in files of a directory, which ``PROMETHEUS_MULTIPROC_DIR`` names before it
is imported, and whoever is asked adds them up; so figures that somebody else keeps (the engine, the
prefix cache) are copied into ours by `look`. Labels are routes, statuses and tenants, of which
there are as many as the server knows: what a client may choose freely is none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.errors import StoreError

if TYPE_CHECKING:
    from langchain_rwkv_state.model_stats import ModelStats

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_OF_TOKENS = ("tenant", "kind")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        # Imported here: workers name the directory of their figures before.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()

        def counter(name: str, says: str, *labels: str) -> Any:
            return Counter(f"rwkv_state_{name}", says, labels, registry=self._registry)

        def gauge(name: str, says: str, mode: Any = "livesum") -> Any:
            return Gauge(
                f"rwkv_state_{name}", says, registry=self._registry, multiprocess_mode=mode
            )

        def histogram(name: str, says: str) -> Any:
            return Histogram(
                f"rwkv_state_{name}", says, ("route",), registry=self._registry, buckets=_SECONDS
            )

        self._requests = counter("requests", "Requests that were answered.", "route", "status")
        self._refused = counter("refused", "Requests that were not let in.", "tenant", "reason")
        self.running = gauge("requests_in_flight", "Requests that run.")
        self._first = histogram("first_byte_seconds", "From a request to its first byte.")
        self._seconds = histogram("request_seconds", "From a request to its end.")
        self._tokens = counter(
            "tokens", "Tokens of prompts that were read, or cached, and of answers.", *_OF_TOKENS
        )
        self._store_errors = counter("store_errors", "Failures of a store.", "error")
        self._broken = counter("broken_streams", "Answers that failed in their stream.", "error")
        self.tenants = gauge("open_tenants", "Tenants whose store is open.")
        self.draining = gauge("draining", "1 while the server ends, 0 else.", "livemax")
        self.workers = gauge("workers", "Processes that serve.")
        self._gauges = {
            "queued": gauge("engine_queued", "Requests that wait for the engine."),
            "active": gauge("engine_active", "Requests that the engine serves."),
            "slots": gauge("engine_slots", "States that there is room for now."),
            "max_slots": gauge("engine_max_slots", "States that there may be room for."),
            "cache_bytes": gauge("prefix_cache_bytes", "Bytes that the prefix cache holds."),
        }
        self._totals = {
            "steps": counter("engine_steps", "Passes over the model."),
            "prompt_tokens": counter("engine_prompt_tokens", "Tokens that the model read."),
            "decoded_tokens": counter("engine_answer_tokens", "Tokens that were sampled."),
            "cache_lookups": counter("prefix_cache_lookups", "Prompts that were looked up."),
            "cache_hits": counter("prefix_cache_hits", "Prompts whose beginning was found."),
            "cache_tokens_saved": counter("prefix_cache_tokens_saved", "Tokens not read again."),
        }
        self._looked: dict[str, int] = dict.fromkeys(self._totals, 0)
        self.workers.set(1)
        self.draining.set(0)

    @property
    def is_one_of_many(self) -> bool:
        """Whether another worker may be asked for this one's figures."""
        return MULTIPROCESS in os.environ

    def answered(
        self, route: str, status: int, seconds: float, first_byte_seconds: float | None
    ) -> None:
        """Counts a request that ended.

        Args:
            route: The path of its route, not the one that was asked for.
            status: What it was answered with.
            seconds: How long it took.
            first_byte_seconds: How long the first byte of its body took; ``None`` without one.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if first_byte_seconds is not None:
            self._first.labels(route).observe(first_byte_seconds)

    def refused(self, tenant: str, reason: str) -> None:
        """Counts a request that was not let in.

        Args:
            tenant: Whose it was, empty where that is not known.
            reason: ``key``, ``requests``, ``tokens``, ``body`` or ``draining``.
        """
        self._refused.labels(tenant, reason).inc()

    def spent(self, tenant: str, read: int, cached: int, answered: int) -> None:
        """Counts the tokens of an answer, as `Usage.spent` has them."""
        for kind, tokens in (("read", read - cached), ("cached", cached), ("answered", answered)):
            self._tokens.labels(tenant, kind).inc(tokens)

    def failed(self, error: BaseException) -> None:
        """Counts what was answered with an error, where it is a failure of a store."""
        if isinstance(error, StoreError):
            self._store_errors.labels(type(error).__name__).inc()

    def stream_failed(self, error: BaseException) -> None:
        """Counts what ended an answer in the middle of its stream, by the error's class."""
        self._broken.labels(type(error).__name__).inc()
        self.failed(error)

    def look(self, stats: ModelStats) -> None:
        """Copies a model's figures."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stats, name))
        for name, counter in self._totals.items():
            total = getattr(stats, name)
            before = self._looked[name]
            # A total that is less than before began anew with its engine.
            counter.inc(total - before if total >= before else total)
            self._looked[name] = total

    def text(self) -> bytes:
        """Returns all figures in the form that Prometheus reads; of all workers, where some are."""
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess

        registry, folder = self._registry, os.environ.get(MULTIPROCESS)
        if folder is not None:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
