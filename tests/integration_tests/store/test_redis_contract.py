"""The store contract, in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from langchain_rwkv_state.store import RedisStateStore, StateStore
from langchain_rwkv_state.testing import StateStoreContract
from tests.helpers.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


class TestRedisStore(StateStoreContract):
    tenants = count()
    """Each store is that of another tenant of one server."""

    @pytest.fixture(autouse=True)
    def _of_server(self, server: RedisServer) -> None:
        self.url = server.url

    def open_store(self, **settings: Any) -> StateStore:
        return RedisStateStore(self.url, tenant=f"{next(self.tenants)}", **settings)
