"""A layer's kernels in Triton's interpreter, beside the plain ones and the exact result.

Triton decides at its import whether it interprets, so a process of its own runs them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeAlias
from unittest import mock

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from tests.helpers.interpreter import Interpreter
from tests.helpers.kernel_cases import CPU, Case, Draws, Results, layer_case, layer_cases
from tests.helpers.launches import launches

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
RANKS = (128, 128, 480, 96)  # of decay, rate, gate and value mix at 7.2B


def wide_cases() -> Iterator[Case]:
    """Widths and ranks of real models, with few rows."""
    draws = Draws(3)
    for width in (768, 2560, 4096, 8192):
        yield layer_case(draws, "mix", dtype=HALF, rows=4, width=width)
        yield layer_case(draws, "mix", dtype=HALF, rows=2, width=width, ragged=False)
        yield layer_case(draws, "end", dtype=HALF, rows=3, width=width)
    yield layer_case(draws, "mix", dtype=HALF, rows=10, width=96, ragged=False)
    yield layer_case(draws, "low_rank", dtype=HALF, rows=40, width=48, ranks=RANKS)
    yield layer_case(draws, "products", dtype=HALF, rows=4, width=96)


def odd_cases() -> Iterator[tuple[str, Case]]:
    """Numbers at which a kernel may go astray."""
    draws = Draws(5)
    for dtype in (HALF, BRAIN):
        large = layer_case(draws, "relu_squared", dtype=dtype, rows=2, width=96)
        large.given["x"][0, :8] = torch.tensor(
            [255, 256, 6e4, 0, -0.0, -6e4, torch.inf, -torch.inf]
        )
        large.given["x"][1, 0] = torch.nan
        yield f"large {dtype}", large
    loud = layer_case(draws, "channel", dtype=HALF, rows=1, width=64, scale=400)
    loud.given["value"] /= 512
    yield "loud", loud
    for kernel in ("mix", "end"):
        zero = layer_case(draws, kernel, dtype=HALF, rows=3, width=96, ragged=kernel == "end")
        zero.given["x"][1], zero.given["add"][1] = 0, 0
        yield f"zero {kernel}", zero
    for name, active in (("none", ()), ("one", (37,)), ("sparse", (0, 15, 16, 200)), ("all", None)):
        case = layer_case(draws, "channel", dtype=HALF, rows=1, width=64, inner=250)
        key, x = case.given["key"], case.given["x"]
        on = torch.zeros(len(key), dtype=torch.bool)
        on[list(range(len(key)) if active is None else active)] = True
        # Each activation is as wanted, whatever the numbers; the rows of the others are no numbers.
        key *= torch.where((key.float() @ x[0].float() > 0) == on, 1, -1).unsqueeze(1).to(HALF)
        case.given["value"].t()[~on] = torch.nan
        yield f"active {name}", case


def law_cases() -> Iterator[tuple[str, Case]]:
    """Six rows of two conversations, in one pass and in four."""
    whole = layer_case(Draws(11), "mix", dtype=HALF, rows=6, width=96)
    whole.given["at"] = Spans.of([Segment(4, 0, 1, ((2, 4),)), Segment(2, 2, 3)], CPU)
    yield "whole", whole
    given = {name: part for name, part in whole.given.items() if name != "at"}
    places = [
        ([0, 4], [0, 2], [5, 6]),
        ([1, 5], [5, 6], [4, 3]),
        ([2], [4], [7]),
        ([3], [7], [1]),
    ]
    given["steps"] = [
        (rows, Spans.of_each(torch.tensor(before).int(), torch.tensor(after).int()))
        for rows, before, after in places
    ]
    yield "steps", Case("mix by steps", given)


def all_cases() -> dict[str, Case]:
    cases = {f"{number} {case.note}": case for number, case in enumerate(layer_cases())}
    cases |= {f"wide {number} {case.note}": case for number, case in enumerate(wide_cases())}
    return cases | dict(odd_cases()) | dict(law_cases())


CASES = all_cases()
RANDOM = [name for name, case in CASES.items() if case.note and case.note in name]


def params(kernel: str = "") -> list[ParameterSet]:
    """Returns the names of the random cases; those that take longest are left to a thorough run."""
    slow = re.compile(
        "(low_rank|products) (float32|bfloat16) T=.( |$)|low_rank .* T=40|D=(2560|4096)"
    )
    return [
        pytest.param(name, marks=[pytest.mark.thorough] if slow.search(name) else [])
        for name in RANDOM
        if kernel in name
    ]


def interpreted(case: Case) -> Results:
    """What the kernels give; for `Interpreter`."""
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    return case.run(TritonKernels())


def tried() -> str | None:
    """What the trial says; likewise."""
    from langchain_rwkv_state.runtime.cuda.layer_trial import works

    return works(CPU, HALF, (2,))


Found: TypeAlias = Callable[[str], Results]


@pytest.fixture(scope="module")
def found(interpreter: Interpreter) -> Found:
    """What came of a case, by its name."""
    return cache(lambda name: interpreter.run(interpreted, CASES[name]))


def exact(case: Case) -> Results:
    """Returns what the plain kernels give where they compute in fp64."""
    with mock.patch.object(Tensor, "float", Tensor.double):
        return case.exact().run(PlainKernels())


@pytest.mark.parametrize("name", params())
def test_a_kernel_is_as_exact_as_the_plain_one(found: Found, name: str) -> None:
    case = CASES[name]
    ours, plain, wanted = found(name), case.run(PlainKernels()), exact(case)
    assert ours.keys() == plain.keys()
    for part, expected in wanted.items():
        assert ours[part].dtype == plain[part].dtype
        assert ours[part].shape == plain[part].shape
        scale = expected.abs().max()
        error, theirs = (
            (each - expected).abs().max() / scale for each in (ours[part], plain[part])
        )
        # The interpreter cuts bf16 off where a card rounds it, which doubles an error.
        factor = 3.0 if case.dtype == BRAIN else 2.0
        assert error <= factor * theirs + torch.finfo(ours[part].dtype).eps / 2, part


def test_an_error_would_be_found(found: Found) -> None:
    """Rows that are off by one are no small error."""
    name = next(name for name in RANDOM if name.startswith("wide") and "mix" in name)
    wanted = exact(CASES[name])["mixed"]
    ours = found(name)["mixed"]
    assert (ours.roll(1, 1) - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.parametrize("name", params("mix float"))
def test_cells_that_are_not_named_stay_bit_for_bit(found: Found, name: str) -> None:
    given, after = CASES[name].given, found(name)["cells"]
    others = torch.ones(len(after), dtype=torch.bool)
    others[given["at"].after[given["at"].after >= 0].long()] = False
    assert others.any()
    assert torch.equal(after[others], given["cells"][others])
    assert not torch.equal(after[~others], given["cells"][~others])


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_squares_end_at_the_largest_number(found: Found, dtype: torch.dtype) -> None:
    given, y = CASES[f"large {dtype}"].given["x"], found(f"large {dtype}")["y"]
    largest = torch.finfo(dtype).max
    expected = PlainKernels().relu_squared(given.clone())
    assert torch.allclose(y, expected, rtol=2 * torch.finfo(dtype).eps, equal_nan=True)
    assert y[0, 6] == largest
    assert y[0, 1] == 256**2 if dtype == BRAIN else y[0, 1] == largest
    assert y[1, 0].isnan()  # and an error upstream is not hidden


def test_a_loud_row_stays_a_number(found: Found) -> None:
    case = CASES["loud"]
    hidden = functional.linear(case.given["x"].float(), case.given["key"].float())
    assert (hidden > 256).any()
    y, plain = found("loud")["y"], case.run(PlainKernels())["y"]
    assert y.isfinite().all()
    assert (y - plain).abs().max() < 2e-3 * plain.abs().max()


@pytest.mark.parametrize("kernel", ["mix", "end"])
def test_a_row_of_zeros_is_normed(found: Found, kernel: str) -> None:
    case, ours = CASES[f"zero {kernel}"], found(f"zero {kernel}")
    assert (case.given["x"][1] == 0).all()
    for part, expected in case.run(PlainKernels()).items():
        assert ours[part].isfinite().all()
        assert (ours[part] - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize(("name", "active"), [("none", 0), ("one", 1), ("sparse", 4), ("all", 250)])
def test_rows_whose_activation_is_zero_are_not_read(found: Found, name: str, active: int) -> None:
    case = CASES[f"active {name}"]
    value = case.given["value"]
    assert value.isnan().any() == (active < 250)
    assert value.isnan().all(0).sum() == 250 - active
    y = found(f"active {name}")["y"]
    case.given["value"] = value.nan_to_num()
    expected = exact(case)["y"]
    assert (y - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_ids_in_one_pass_or_in_many_give_the_same_bits(found: Found) -> None:
    whole, steps = found("whole"), found("steps")
    for part in ("total", "mixed"):
        assert torch.equal(steps[part], whole[part])
    reached = [1, 3, 4]  # the ends, and the mark
    assert torch.equal(steps["cells"][reached], whole["cells"][reached])


@pytest.mark.thorough
def test_the_trial_lets_them_pass(interpreter: Interpreter) -> None:
    assert interpreter.run(tried) is None


@pytest.mark.parametrize("rows", [5, 40])
def test_without_tensor_cores_many_rows_go_to_cublas(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_rwkv_state.runtime.cuda import low_rank_kernels
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    draws = Draws(2)
    for dtype, first in ((SINGLE, False), (HALF, True)):
        monkeypatch.setattr(low_rank_kernels, "_has_tensor_cores", lambda x: False)
        case = layer_case(draws, "low_rank", dtype=dtype, rows=rows, width=64, first=first)
        with launches() as found:
            ours = case.run(TritonKernels())
        assert not found
        for part, expected in case.run(PlainKernels()).items():
            assert torch.allclose(ours[part], expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_turing_has_no_tensor_cores_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_rwkv_state.runtime.cuda import low_rank_kernels

    on_card = mock.Mock(spec=Tensor, is_cuda=True, dtype=HALF, device=torch.device("cuda", 1))
    asked = mock.Mock(return_value=(7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_capability", asked)
    assert not low_rank_kernels._has_tensor_cores(on_card)
    asked.assert_called_with(torch.device("cuda", 1))
    asked.return_value = (8, 0)
    assert low_rank_kernels._has_tensor_cores(on_card)
    on_card.dtype = SINGLE
    assert not low_rank_kernels._has_tensor_cores(on_card)
