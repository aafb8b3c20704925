"""Tenants whose stores are opened as the server opens them, over a model that nobody loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.model_stats import ModelStats
from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.serve.tenants import Tenant, Tenants

KEYS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob", "metrics")}


def bearer(name: str) -> dict[str, str]:
    """Returns the header that brings a tenant's key."""
    return {"authorization": f"Bearer {KEYS[name]}"}


def write_keys(folder: Path, limits: str = "") -> str:
    """Writes a file of the keys of alice, bob and metrics; returns its path.

    Args:
        folder: Where.
        limits: Those of alice and bob, as a line has them.
    """
    file = folder / "keys"
    lines = [f"{name} {key} {limits if name != 'metrics' else ''}" for name, key in KEYS.items()]
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    return str(file)


class ModellessTenants(Tenants):
    """Opens stores in memory, and loads nothing.

    Attributes:
        opened: Whose store was opened, in order.
        failures: So many openings fail from now on.
        closed: Whose store was closed, in order.
    """

    def __init__(self, settings: ServeSettings, *rest: Any) -> None:
        super().__init__(settings, *rest)
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.failures = 0

    def load(self) -> None:
        """Does nothing."""

    def stats(self) -> ModelStats:
        """Returns those of a model that was not loaded."""
        return ModelStats("demo", "cpu fp32", loaded=False)

    def _opened(self, name: str) -> Tenant:
        self.opened.append(name)
        if self.failures:
            self.failures -= 1
            raise StoreError("The store cannot be opened.")
        model = _NoModel()
        account = self.account(name)
        store = _Store(name, self.closed)
        return Tenant(name, cast("Any", model), cast("Any", model), store, account)


class _NoModel:
    def unload(self) -> None:
        pass


class _Store(MemoryStateStore):
    def __init__(self, name: str, closed: list[str]) -> None:
        super().__init__()
        self._whose = name
        self._told = closed

    def close(self) -> None:
        self._told.append(self._whose)
        super().close()
