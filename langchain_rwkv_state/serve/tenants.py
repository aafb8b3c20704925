"""Who asks: each key is a tenant, with a store and a part of the prefix cache of its own.

A tenant's store is opened when it first asks, and closed when it has not asked for long. All
tenants share the one model: a chat object is settings, and its engine answers everybody in one
batch. All but what says so is on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_rwkv_state.chat_models import ChatRWKV
from langchain_rwkv_state.llms import RWKVLLM
from langchain_rwkv_state.model_stats import ModelStats
from langchain_rwkv_state.serve.accounts import Account, Usage
from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.keys import METRICS, Keys
from langchain_rwkv_state.serve.ledger import Ledger, OwnLedger
from langchain_rwkv_state.serve.metrics import Metrics
from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.serve.stores import cache_of, open_store_of
from langchain_rwkv_state.store import MemoryStateStore, StateStore

__all__ = ["Tenant", "Tenants", "Usage"]

logger = logging.getLogger("langchain_rwkv_state.serve")

EVERYBODY = "default"
"""The one tenant where there are no keys."""

_OF_CHATS = frozenset(("reasoning", "keep_reasoning"))
_PROBED = "ready"  # a session that need not be there


@dataclass(frozen=True)
class Tenant:
    """One who asks.

    Attributes:
        name: Its name.
        chat: Answers its messages; what it reads is kept apart from that of others.
        llm: Completes its texts, likewise.
        store: Its conversations, and nobody else's.
        usage: Hears what its answers cost.
    """

    name: str
    chat: ChatRWKV
    llm: RWKVLLM
    store: StateStore
    usage: Usage = field(default_factory=Usage)


class _Place:
    """A tenant that is open or being opened, and who uses it."""

    def __init__(self) -> None:
        self.users = 0
        self.tenant: Tenant | None = None
        self.opening: asyncio.Task[Tenant] | None = None
        self.closing: asyncio.TimerHandle | None = None


class Tenants:
    """Everybody who may ask.

    Args:
        settings: What the server was started with.
        metrics: Counts; ``None`` for nobody's.
        ledger: Counts what limits are about; ``None`` where no other process serves the same keys.

    Raises:
        ServeError: The file of keys cannot be read.
    """

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._ledger = ledger or OwnLedger()
        self._places: dict[str, _Place] = {}  # the one that was asked least lately first
        self._accounts: dict[str, Account] = {}
        self._model: ChatRWKV | None = None
        self._let_go: set[asyncio.Task[None]] = set()
        self._keys: Keys | None = None
        self._cache = cache_of(settings)
        self.read_keys()

    # -- the server's life, on any thread ----------------------------------------------------

    def read_keys(self) -> None:
        """Reads the file of keys anew: keys that left it open nothing any more.

        Raises:
            ServeError: It cannot be read; the keys from before hold.
        """
        if self._settings.api_key_file is None:
            limits = {EVERYBODY: self._settings.limits}
        else:
            self._keys = Keys.read(self._settings.api_key_file, self._settings.limits)
            limits = {name: each for name, each in self._keys.limits.items() if name != METRICS}
        for name, each in limits.items():
            known = self._accounts.get(name)
            if known is None:
                told = partial(self._metrics.spent, name)
                failed = self._metrics.stream_failed
                self._accounts[name] = Account(name, each, self._ledger, told, failed)
            else:
                known.change(each)

    def load(self) -> None:
        """Loads the model, before anybody asks, and opens a store to see that it can be.

        Raises:
            RWKVStateError: It cannot be had.
        """
        if self._model is None:
            about = {"store": MemoryStateStore(), "prefix_cache": self._cache}
            model = ChatRWKV(**{**model_settings(self._settings), **about})
            model.loaded()
            self._model = model
        name = next(iter(self._accounts))
        if name not in self._places:
            place = _Place()
            place.tenant = self._opened(name)
            self._places[name] = place
            self._metrics.tenants.inc()

    def stop(self) -> None:
        """Ends all answers that are being made, each with an error, and makes no more."""
        if self._model is not None:
            self._model.loaded().engine.close()

    async def aclose(self) -> None:
        """Lets go of stores and model, once no store is being opened or closed any more."""
        while pending := [
            *(place.opening for place in self._places.values() if place.opening is not None),
            *self._let_go,
        ]:
            await asyncio.wait(pending)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Lets go of stores and model, where no event loop runs that opens them."""
        for place in self._places.values():
            if place.tenant is not None:
                _close(place.tenant)
        self._places.clear()
        if self._model is not None:
            self._model.unload()
            self._model = None
        if self._cache:
            self._cache.close()

    def stats(self) -> ModelStats:
        """Returns what the model does and did."""
        model, settings = self._model, self._settings
        if model is None:
            return ModelStats(settings.model, settings.strategy, loaded=False)
        return model.stats()

    # -- who asks ----------------------------------------------------------------------------

    def name_of(self, key: str | None) -> str:
        """Returns the tenant's name that goes with a key.

        Args:
            key: As it was sent; ``None`` for none.

        Raises:
            ApiError: It opens nothing.
        """
        if self._keys is None:
            return EVERYBODY
        name = self._known(key)
        if name == METRICS:
            raise ApiError(
                403,
                "This key reads /metrics alone.",
                code="insufficient_permissions",
            )
        return name

    def check_metrics(self, key: str | None) -> None:
        """Checks that a key may read the server's figures, which tell of all tenants.

        Raises:
            ApiError: It may not.
        """
        if self._keys is not None and self._known(key) != METRICS:
            raise ApiError(
                403,
                f"/metrics is read by the key of {METRICS!r}, a line of that name in the file of "
                "keys: it tells of all tenants.",
                code="insufficient_permissions",
            )

    def account(self, name: str) -> Account:
        """Returns what a tenant may ask, and uses."""
        return self._accounts[name]

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Tenant]:
        """Gives a tenant, opened if need be, and open to the end of the block.

        Raises:
            RWKVStateError: Its store cannot be opened.
        """
        try:
            yield await self.enter(name)
        finally:
            self.leave(name)

    async def enter(self, name: str) -> Tenant:
        """Returns a tenant, open until `leave`, which is due in any case: see `using`.

        Raises:
            RWKVStateError: Its store cannot be opened.
        """
        place = self._places.pop(name, None) or _Place()
        self._places[name] = place
        place.users += 1
        if place.closing is not None:
            place.closing.cancel()
            place.closing = None
        if place.tenant is not None:
            return place.tenant
        if place.opening is None:
            place.opening = asyncio.ensure_future(self._open(name, place))
        # Whoever leaves meanwhile leaves it to the others.
        return await asyncio.shield(place.opening)

    def leave(self, name: str) -> None:
        """Says that a request of a tenant ended."""
        place = self._places[name]
        place.users -= 1
        if place.users:
            return
        loop = asyncio.get_running_loop()
        if place.tenant is None:
            if place.opening is None or place.opening.done():
                del self._places[name]
            return
        seconds = self._settings.idle_seconds
        place.closing = loop.call_later(seconds, self._close_unused, name)
        self._close_surplus()

    async def probe(self) -> None:
        """Looks whether a store can be read.

        Raises:
            RWKVStateError: It cannot.
        """
        name = next(reversed(self._places), next(iter(self._accounts)))
        async with self.using(name) as tenant:
            await tenant.store.asession(_PROBED, renew=False)

    # -- opening and closing -----------------------------------------------------------------

    def _known(self, key: str | None) -> str:
        """Returns the name of a key.

        Raises:
            ApiError: There is none.
        """
        name = None if key is None or self._keys is None else self._keys.tenant_of(key)
        if name is None:
            says = (
                "No API key was sent: send `Authorization: Bearer KEY`."
                if key is None
                else "This API key is not known here: ask whoever runs the server for one."
            )
            raise ApiError(
                401, says, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
            )
        return name

    async def _open(self, name: str, place: _Place) -> Tenant:
        try:
            tenant = await asyncio.to_thread(self._opened, name)
        except BaseException:
            if not place.users:  # whoever asked has left
                self._places.pop(name, None)
            raise
        finally:
            place.opening = None
        place.tenant = tenant
        self._metrics.tenants.inc()
        if not place.users:  # whoever asked has left
            place.users = 1
            self.leave(name)
        return tenant

    def _close_surplus(self) -> None:
        """Closes those that were not asked for the longest time, beyond how many may be open."""
        surplus = len(self._places) - self._settings.open_tenants
        for name in list(self._places):
            if surplus <= 0:
                return
            if not self._places[name].users:
                self._close_unused(name)
                surplus -= 1

    def _close_unused(self, name: str) -> None:
        place = self._places.get(name)
        if place is None or place.users or place.tenant is None:
            return
        del self._places[name]
        if place.closing is not None:
            place.closing.cancel()
        self._metrics.tenants.dec()
        logger.debug("Closes the store of %s, who did not ask for a while", name)
        task = asyncio.ensure_future(asyncio.to_thread(_close, place.tenant))
        self._let_go.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(self._let_go.discard)

    def _opened(self, name: str) -> Tenant:
        """Opens a tenant; on any thread."""
        alone = self._keys is None
        store = open_store_of(self._settings, None if alone else name)
        about = {**model_settings(self._settings), "store": store, "prefix_cache": self._cache}
        if not alone:
            about["cache_salt"] = name
        try:
            chat = ChatRWKV(**about)
            llm = RWKVLLM(**{each: value for each, value in about.items() if each not in _OF_CHATS})
            chat.loaded()
            llm.loaded()
        except BaseException:
            store.close()
            raise
        return Tenant(name, chat, llm, store, self._accounts[name])


def model_settings(settings: ServeSettings) -> dict[str, Any]:
    """Returns the settings of the server's model, as `ChatRWKV` takes them."""
    return {
        "model": settings.model,
        "strategy": settings.strategy,
        "tokenizer": settings.tokenizer,
        "template": settings.template,
        **(settings.options or {}),
    }


def _close(tenant: Tenant) -> None:
    tenant.chat.unload()
    tenant.llm.unload()
    tenant.store.close()
