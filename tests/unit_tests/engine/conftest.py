"""An engine over a fake runtime with World's vocabulary, for tests that make none of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from langchain_rwkv_state.engine import Engine
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import WORLD


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime(65_536)


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = Engine(runtime, WORLD)
    yield engine
    engine.close()
