"""A store in memory and one on disk, whose clock a test sets, for tests that hold for both."""

from __future__ import annotations

import pytest

from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, StateStore
from tests.helpers.states import DAY, SetClock


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture(params=["memory", "disk"])
def store(request, clock, tmp_path):
    in_memory = request.param == "memory"
    made: StateStore = (
        MemoryStateStore(ttl=DAY, clock=clock)
        if in_memory
        else DiskStateStore(tmp_path / "store", ttl=DAY, clock=clock)
    )
    with made as opened:
        yield opened
