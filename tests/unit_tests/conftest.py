"""Random models of every version, and states that they read: for states, runtimes and toolbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.state import RWKVState, StateLayout
from tests.helpers.checkpoints import write_checkpoint

Load = Callable[..., Runtime]
Read = Callable[..., RWKVState]
LAYOUTS: dict[int, StateLayout] = {
    4: StateLayout.of(4, n_layer=2, n_embd=64),
    5: StateLayout.of(5, n_layer=2, n_embd=64, head_size=32, shift_dtype="bf16"),
    6: StateLayout.of(6, n_layer=2, n_embd=64, head_size=32, shift_dtype="fp16"),
    7: StateLayout.of(7, n_layer=2, n_embd=64, head_size=32),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[float, Runtime]]:
    """A tiny random model of each version, loaded once."""
    folder = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"n_layer": 3, "n_embd": 64, "head_size": 32}
    loaded = {
        version: load_runtime(
            write_checkpoint(folder / f"{version}.pth", version, **sizes), "package cpu fp32"
        )
        for version in (4, 5.2, 6, 7)
    }
    yield loaded
    for runtime in loaded.values():
        runtime.close()


@pytest.fixture(params=[4, 5.2, 6, 7])
def runtime(request: pytest.FixtureRequest, models: dict[float, Runtime]) -> Runtime:
    """Each version in turn."""
    return models[request.param]


@pytest.fixture
def read(runtime: Runtime) -> Read:
    """Reads tokens from zero: ``read([1, 2])``."""

    def state(tokens: list[int]) -> RWKVState:
        return runtime.forward(tokens, runtime.zero_state())[1]

    return state


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a random model: ``load(6, "cpu bf16", seed=1)``."""
    opened: list[Runtime] = []

    def make(
        version: float, strategy: str = "package cpu fp32", *, suffix: str = ".pth", **options: Any
    ) -> Runtime:
        path = tmp_path / f"{version}-{options.get('seed', 0)}{suffix}"
        if not path.exists():
            sizes = {"n_embd": 64, "head_size": 32, **options}
            write_checkpoint(path, version, **sizes)
        opened.append(load_runtime(path, strategy))
        return opened[-1]

    yield make
    for runtime in opened:
        runtime.close()
