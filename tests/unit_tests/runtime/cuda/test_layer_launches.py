"""What a layer launches, without a card: how much, whether it can be recorded, what it compiles.

Passes run on the meta device, where there are shapes alone. Triton must not interpret here: its
launches are listed, and compiled ahead of time for cards that are not there.
"""

from __future__ import annotations

import importlib.util
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_rwkv_state.runtime.cuda.kernels import Heads, Kernels, PlainKernels
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from langchain_rwkv_state.runtime.native.weights import Norm
from tests.helpers.ahead_of_time import CAPABILITIES, MOST_SHARED, compiled_for
from tests.helpers.kernel_cases import KERNELS, Draws, layer_case
from tests.helpers.launches import Launch, launches

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
MOST_LAUNCHES = 14
MOST_REGISTERS = 128
"""Of a thread: four programs of 128 threads then share a multiprocessor."""

SHAPES = {768: (64, 64, 128, 32), 2048: (96, 96, 256, 64), 4096: (128, 128, 480, 96)}
"""Widths of 0.1B, 1.5B and 7.2B, with the ranks of decay, rate, gate and value mix."""

VIEWS = {
    *("view", "_unsafe_view", "unsqueeze", "squeeze", "slice", "select", "t", "transpose"),
    *("expand", "alias", "detach", "unbind", "permute", "split", "empty", "new_empty"),
    *("empty_like", "arange"),
}
"""Operators that launch nothing."""

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "_unique2", "masked_select"}
"""Operators that wait for the device."""


class Operators(TorchDispatchMode):
    """Counts the operators that launch something; those of Python's numbers are errors."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.forbidden: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        out = func(*args, **(kwargs or {}))
        devices = {str(part.device) for part in (*args, out) if isinstance(part, Tensor)}
        if name in WAITS or len(devices) > 1:
            self.forbidden.append(name)
        if name not in VIEWS:
            self.launched[name] += 1
        return out


class Layer:
    """One block on the meta device, as the pass puts it together."""

    def __init__(self, kernels: Kernels, width: int, *, first: bool = False) -> None:
        self.kernels, self.first, self.width = kernels, first, width
        with torch.device("meta"):
            parts = {
                name: layer_case(
                    MetaDraws(1),
                    name,
                    dtype=HALF,
                    rows=1,
                    width=width,
                    first=first,
                    ranks=SHAPES[width],
                ).given
                for name in ("products", "low_rank", "channel")
            }
            for given in parts.values():
                del given["x"]
            vector = torch.empty(width, dtype=HALF)
            self.products = kernels.products(**parts["products"])
            self.low_rank = kernels.low_rank(**parts["low_rank"])
            self.channel = kernels.channel(**parts["channel"])
            self.norm = Norm(vector, vector)
            self.heads = Heads(vector, vector, vector, self.norm)
            self.lerp = torch.empty(6, width, dtype=HALF)
            self.output = torch.empty(width, width, dtype=HALF)
            self.cells = torch.empty(2, 9, width, dtype=HALF)
            self.wkv = torch.empty(9, width // 64, 64, 64)

    def run(self, rows: int, at: Spans) -> None:
        """Runs the layer once."""
        x, add = (torch.empty(rows, self.width, dtype=HALF, device="meta") for _ in range(2))
        x, mixed = self.kernels.mix(x, add, self.norm, self.lerp, self.cells[0], at)
        rkv, gates = self.products(mixed[:3]), self.low_rank(mixed)
        v_first = None if self.first else rkv[2]
        y = self.kernels.time_mix(rkv, gates, v_first, self.heads, self.wkv, at)
        y = functional.linear(y, self.output)
        x, mixed = self.kernels.mix(x, y, self.norm, self.lerp[:1], self.cells[1], at)
        self.channel(mixed[0])


class MetaDraws(Draws):
    """Draws shapes alone."""

    def tensor(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")


def each(rows: int) -> Spans:
    index = torch.empty(rows, dtype=torch.int32, device="meta")
    return Spans.of_each(index, index)


def one(rows: int) -> Spans:
    return Spans.of([Segment(rows, 0, 1)], torch.device("meta"))


def counted(layer: Layer, rows: int, at: Spans) -> tuple[list[Launch], Counter[str]]:
    with launches() as found, Operators() as operators:
        layer.run(rows, at)
    assert not operators.forbidden
    return found, operators.launched


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 64, 320])
@pytest.mark.parametrize("first", [False, True])
def test_a_layer_is_ten_launches(rows: int, first: bool) -> None:
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    found, operators = counted(Layer(TritonKernels(), 2048, first=first), rows, each(rows))
    assert len(found) + operators.total() == 10 <= MOST_LAUNCHES
    # Of PyTorch's, only products.
    assert operators.keys() <= {"mm", "bmm"}


@pytest.mark.parametrize("rows", [2, 40, 1024])
def test_a_layer_of_a_prompt_is_few_launches(rows: int) -> None:
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    found, operators = counted(Layer(TritonKernels(), 2048), rows, one(rows))
    assert len(found) + operators.total() <= MOST_LAUNCHES
    assert operators.keys() <= {"mm", "bmm"}


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_the_plain_kernels_can_be_recorded_too(rows: int) -> None:
    layer = Layer(PlainKernels(), 768)
    _, operators = counted(layer, rows, each(rows))
    assert operators.total() > MOST_LAUNCHES  # and the budget is one that they miss


def test_what_waits_for_the_device_is_found() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        counted(Layer(PlainKernels(), 768), 4, one(4))


def variants(
    layer: Layer, sizes: Iterable[int], at: Callable[[int], Spans]
) -> set[tuple[object, ...]]:
    """Returns what is compiled for passes of some numbers of rows."""
    return {launch.compiled for rows in sizes for launch in counted(layer, rows, at(rows))[0]}


def test_another_number_of_rows_compiles_nothing_anew() -> None:
    """What is compiled at a few sizes is all that there is."""
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    layer = Layer(TritonKernels(), 768)
    decode = variants(layer, (1, 2, 3, 17, 129, 513), each)
    assert variants(layer, (4, 6, 16, 31, 64, 100, 200, 256, 320, 1000), each) <= decode
    prompts = variants(layer, (2, 3, 17, 129, 513), one)
    assert variants(layer, (4, 7, 16, 31, 128, 512, 777, 2048), one) <= prompts


def test_tensors_of_indices_may_lie_anywhere() -> None:
    """They are parts of one; Triton would compile anew for each way in which they lie."""
    indices = {"given_at", "slot_at", "last_at", "before_at", "after_at"}
    found = [(launch.kinds.keys() & indices, launch) for launch in launched(768, HALF, (1, 8))]
    assert set().union(*(names for names, _ in found)) == indices
    for names, launch in found:
        assert names <= {*launch.loose}, launch.name


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def launched(width: int, dtype: torch.dtype, sizes: tuple[int, ...]) -> list[Launch]:
    """Returns all that a model of a width launches at some numbers of rows, each kernel once."""
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    shape: Any = {"dtype": dtype, "width": width, "ranks": SHAPES[width], "ragged": False}
    found: dict[tuple[object, ...], Launch] = {}
    for rows in sizes:
        with torch.device("meta"):
            cases = [layer_case(MetaDraws(1), name, rows=rows, **shape) for name in KERNELS]
            mix = layer_case(MetaDraws(1), "mix", rows=rows, **shape)
            mix.given |= {"at": one(rows), "lerp": torch.empty(6, width, dtype=dtype)}
            wide = replace(mix, given=mix.given | {"at": each(rows)})
            with launches() as listed:
                for case in (*cases, mix, wide):
                    case.run(TritonKernels())
        found |= {launch.compiled: launch for launch in listed}
    return [*found.values()]


def compiled(launch: Launch, capability: int) -> None:
    made = compiled_for(
        capability, launch.kernel, launch.kinds, launch.fixed, loose=launch.loose, **launch.options
    )
    assert made.spilled == 0, launch.compiled
    assert made.registers <= MOST_REGISTERS, launch.compiled
    # Two programs at least, so that one computes while the other waits for memory.
    assert made.shared <= MOST_SHARED[capability] // 2, launch.compiled
    assert made.count(r"ld\.global[^;]*v4|cp\.async\.cg") or made.count(r"ld\.global") < 8


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's assembler may be missing")
@pytest.mark.usefixtures("no_cache")
class TestAhead:
    def test_each_kernel_fits_a_hopper(self) -> None:
        for launch in launched(4096, HALF, (1, 64)):
            compiled(launch, 90)

    @pytest.mark.parametrize("capability", [80, 120])
    def test_the_heaviest_fit_other_cards(self, capability: int) -> None:
        heaviest = {launch.name: launch for launch in launched(4096, HALF, (320,))}
        for name in ("_down", "_up"):
            compiled(heaviest[name], capability)

    @pytest.mark.thorough
    @pytest.mark.parametrize(
        ("width", "dtype", "sizes"),
        [(4096, HALF, (1, 2, 16, 64, 320, 1024)), (2048, BRAIN, (1, 64, 1024))],
    )
    def test_all_kernels_fit_a_hopper(
        self, width: int, dtype: torch.dtype, sizes: tuple[int, ...]
    ) -> None:
        for launch in launched(width, dtype, sizes):
            compiled(launch, 90)

    @pytest.mark.thorough
    @pytest.mark.parametrize("capability", [each for each in CAPABILITIES if each != 90])
    def test_kernels_fit_other_cards(self, capability: int) -> None:
        # Turing's many rows go to cuBLAS.
        for launch in launched(4096, HALF, (1, 2) if capability < 80 else (1, 320)):
            compiled(launch, capability)

    @pytest.mark.thorough
    def test_decode_in_fp32_compiles(self) -> None:
        for launch in launched(2048, SINGLE, (1,)):
            made = compiled_for(
                86, launch.kernel, launch.kinds, launch.fixed, loose=launch.loose, **launch.options
            )
            assert made.spilled == 0
