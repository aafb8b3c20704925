"""Runtimes over random models of every version, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_rwkv_state.runtime import Runtime, load_runtime
from tests.helpers.checkpoints import write_checkpoint

Load = Callable[..., Runtime]

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine."""
    return str(request.param)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a random model: ``load(6, "cpu bf16", seed=1)``."""
    opened: list[Runtime] = []

    def make(
        version: float, strategy: str = "cpu fp32", *, suffix: str = ".pth", **options: Any
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
