"""A trial lets right kernels pass, whatever they are made of, and names one that is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import Gates, LowRank, PlainKernels, Product

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = (1, 2, 16)


class Shifted(PlainKernels):
    """Mixed inputs lie one column off."""

    def mix(self, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        total, mixed = super().mix(x, *rest)
        return total, mixed.roll(1, 2)


class Forgetful(PlainKernels):
    """What came last is not kept."""

    def mix(
        self, x: Tensor, add: Any, norm: Any, lerp: Tensor, cells: Tensor, at: Any
    ) -> tuple[Tensor, Tensor]:
        return super().mix(x, add, norm, lerp, cells.clone(), at)


class Swapped(PlainKernels):
    """Two of the three matrices are each other's."""

    def products(self, receptance: Tensor, key: Tensor, value: Tensor) -> Product:
        return super().products(receptance, value, key)


class Undecided(PlainKernels):
    """A decay is no number."""

    def low_rank(self, *loras: Any) -> LowRank:
        maps = super().low_rank(*loras)

        def gates(mixed: Tensor) -> Gates:
            made = maps(mixed)
            return made._replace(decay=made.decay * torch.nan)

        return gates


class Linear(PlainKernels):
    """Nothing is squared."""

    def relu_squared(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Last(PlainKernels):
    """The last row is each segment's."""

    def end(self, x: Tensor, add: Tensor, norm: Any, at: Any) -> Tensor:
        return super().end(x, add, norm, at)[-1:].expand(len(at.last), -1)


class Given(PlainKernels):
    """What a slot chose last is not asked."""

    def embed(self, emb: Tensor, given: Tensor, slot: Tensor, last: Tensor) -> Tensor:
        return super().embed(emb, given.clamp(min=0), slot, last)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    from langchain_rwkv_state.runtime.cuda import layer_trial

    def run(kernels: type[PlainKernels], dtype: torch.dtype) -> str | None:
        monkeypatch.setattr(layer_trial, "TritonKernels", kernels)
        return layer_trial.works(CPU, dtype, SIZES)

    return run


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_kernels_pass(trial: Any, dtype: torch.dtype) -> None:
    assert trial(PlainKernels, dtype) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernels", "named"),
    [
        (Shifted, "mix"),
        (Forgetful, "mix"),
        (Swapped, "products"),
        (Undecided, "low_rank"),
        (Linear, "channel"),
        (Last, "end"),
        (Given, "embed"),
    ],
)
def test_a_wrong_kernel_is_named(
    trial: Any, kernels: type[PlainKernels], named: str, dtype: torch.dtype
) -> None:
    why = trial(kernels, dtype)
    assert why is not None
    assert why.startswith(named)
    assert "is off by" in why


def test_what_does_not_run_is_no_error_but_an_answer() -> None:
    """There is no card here, and Triton does not interpret."""
    from langchain_rwkv_state.runtime.cuda.layer_trial import works

    why = works(CPU, torch.float16)
    assert why is not None
    assert why.startswith("a layer of 1 tokens does not run: ")
