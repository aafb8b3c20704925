"""Narrow matrices: how few bytes are kept, what is lost, and that nothing waits for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.cuda import matrices
from langchain_rwkv_state.runtime.cuda.matrices import Kind, matrix
from langchain_rwkv_state.runtime.native.compiled import rounded

OUT, IN = 96, 256
DTYPES = [torch.float16, torch.bfloat16]
LOSSES: dict[Kind, float] = {"as_is": 1e-3, "int8": 3e-3, "fp8": 1.5e-2}
"""By the kind, at most: an error's share of the lengths of the row and of the output's weights."""

WAITS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique"}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def weight(dtype: torch.dtype) -> torch.Tensor:
    """Rows of very different sizes, and one of zeros."""
    sizes = torch.logspace(-1.5, 0, OUT).unsqueeze(1)
    found = (random(OUT, IN) * sizes / math.sqrt(IN)).to(dtype)
    found[5] = 0
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOSSES)
def test_what_a_product_loses_has_a_bound(kind: Kind, dtype: torch.dtype) -> None:
    w, x = weight(dtype), random(7, IN, seed=1).to(dtype)
    x[2] = 0
    x[3] *= 1000
    y = matrix(w, kind)(x)
    assert y.dtype == dtype
    exact = x.double() @ w.double().t()
    assert y[2].eq(0).all()
    assert y[:, 5].eq(0).all()
    lengths = x.double().norm(dim=1, keepdim=True) * w.double().norm(dim=1)
    assert ((y.double() - exact).abs() <= LOSSES[kind] * lengths).all()


def _held(product: object) -> int:
    """Returns the bytes of all tensors that an object holds, each storage once."""
    storages = {}
    for value in vars(product).values():
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(("kind", "each"), [("as_is", 2), ("int8", 1), ("fp8", 1)])
def test_only_the_narrow_bytes_are_kept(kind: Kind, each: int) -> None:
    product = matrix(weight(torch.float16), kind)
    assert OUT * IN * each <= product.nbytes <= OUT * IN * each + 4 * OUT
    assert product.nbytes <= _held(product) <= product.nbytes + 4  # a one


class _Watch(TorchDispatchMode):
    """Notes operators that wait for the device, or make a tensor of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        if name in WAITS | {"scalar_tensor", "lift_fresh"} or moved:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_product_can_be_recorded(kind: Kind) -> None:
    product, x = matrix(weight(torch.float16), kind), random(3, IN).half()
    with _Watch() as watch:
        product(x)
    assert not watch.seen
    with _Watch() as watch:
        torch.tensor([1.0]).item()
    assert watch.seen  # so this does see what waits


@pytest.mark.parametrize("kind", LOSSES)
def test_a_row_does_not_depend_on_its_neighbours(kind: Kind) -> None:
    product, x = matrix(weight(torch.float16), kind), random(4, IN).half()
    alone = product(x[:1])
    x[1:] *= 1000
    torch.testing.assert_close(product(x)[:1], alone, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_slices_change_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = weight(torch.float16), random(3, IN).half()
    whole = matrix(w, kind)(x)
    monkeypatch.setattr(matrices, "_SLICE_NUMBERS", 7 * IN + 1)  # 96 is no multiple of 7
    sliced = matrix(w, kind)
    torch.testing.assert_close(sliced(x), whole, rtol=2e-3, atol=1e-5)
    assert sliced.nbytes == matrix(w, kind).nbytes


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
def test_rounding_is_within_half_a_scale_as_it_is_kept(dtype: torch.dtype) -> None:
    w = weight(torch.float32)
    integers, scale = rounded(w, dtype)
    assert scale.dtype == dtype
    off = (integers * scale.float().unsqueeze(1) - w).abs()
    # The clamp may cut what a rounded scale leaves beyond 127 of it.
    assert (off <= scale.float().unsqueeze(1) * (0.5 + 127 * torch.finfo(dtype).eps)).all()


def test_a_card_without_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCard(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    w = torch.ones(16, 16).as_subclass(OnCard)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ModelLoadError, match=r"A100 has .* 8\.0, and fp8 takes 8\.9 .*'cuda int8'"):
        matrix(w, "fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    matrix(w, "fp8")


def test_sizes_that_fp8_cannot_have_are_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"50 x 64 cannot .* multiples of 16: use 'cuda int8'"):
        matrix(torch.ones(50, 64), "fp8")
    assert matrix(torch.ones(50, 64), "int8")(torch.ones(1, 64)).shape == (1, 50)
