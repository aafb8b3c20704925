"""The time-mix's kernels: in Triton's interpreter they give what the formulas give in fp64.

Triton decides at its import whether it interprets, so they run in a process of its own. What the
interpreter is too patient to see, the compiler says: it makes them for cards that are not here.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import pytest
import torch

from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.spans import Spans
from tests.helpers.ahead_of_time import CAPABILITIES, MOST_REGISTERS, MOST_SHARED, compiled_for
from tests.helpers.interpreter import Interpreter
from tests.helpers.time_mixes import CPU, Case, TimeMix, random_case

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)
compiles = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="Triton's assembler may be missing"
)

Result: TypeAlias = tuple[torch.Tensor, torch.Tensor]

CASES: dict[str, dict[str, Any]] = {
    "decode": {"lengths": (1, 1, 1), "n_heads": 2},
    "decode, head 32, bf16": {"lengths": (1, 1), "size": 32, "dtype": torch.bfloat16},
    "decode, head 128, fp16": {"lengths": (1, 1), "size": 128, "dtype": torch.float16},
    "decode, fp16 states": {"lengths": (1, 1), "n_heads": 2, "state_dtype": torch.float16},
    "decode, first layer": {"lengths": (1, 1), "first_layer": True},
    "decode, least decay": {"lengths": (1,), "least_decay": True},
    "decode, large": {"lengths": (1, 1), "scale": 60},
    "ragged": {"lengths": (1, 17, 2, 24), "n_heads": 2},
    "whole chunks": {"lengths": (32, 16)},
    "shorter than a chunk": {"lengths": (5, 1, 7)},
    "head 32, bf16": {"lengths": (19, 14), "size": 32, "dtype": torch.bfloat16},
    "head 128, fp16": {"lengths": (18,), "size": 128, "dtype": torch.float16},
    "fp16 states": {"lengths": (33, 3), "dtype": torch.float16, "state_dtype": torch.float16},
    "first layer": {"lengths": (20, 9), "first_layer": True},
    "least decay": {"lengths": (40,), "least_decay": True},
    "large": {"lengths": (21, 12), "scale": 60},
}
SEEDS = range(24)


def case(name: str) -> Case:
    return random_case(len(name), **CASES[name])


def padded() -> Case:
    """Two rows of a step for four: the others are in a spare cell, as both source and target."""
    full = random_case(3, (1, 1, 1, 1))
    before, after = (torch.tensor(at, dtype=torch.int32) for at in ([4, 7, 15, 15], [2, 9, 15, 15]))
    return full._replace(at=Spans.of_each(before, after))


def drawn(seed: int) -> Case:
    numbers = torch.Generator().manual_seed(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=numbers))]

    dtype = one_of(torch.float32, torch.float16, torch.bfloat16)
    state_dtype = one_of(torch.float32, torch.float16)
    return random_case(
        seed,
        tuple(one_of(1, 1, 2, 15, 16, 17, 31, 33, 48) for _ in range(one_of(1, 2, 4))),
        size=one_of(32, 64, 64, 128),
        n_heads=one_of(1, 2),
        dtype=dtype,
        state_dtype=state_dtype,
        scale=1 if torch.float16 in (dtype, state_dtype) else one_of(1, 8, 60),
        least_decay=one_of(True, False, False),
        first_layer=one_of(True, False, False),
    )


def tf32_products() -> AbstractContextManager[Any]:
    """Has products of fp32 in TF32, as a card has them where a process asked for it."""
    exact = torch.Tensor.__matmul__

    def rounded(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            return x
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    return mock.patch.object(torch.Tensor, "__matmul__", lambda x, y: exact(rounded(x), rounded(y)))


def off(case: Case, got: Result) -> float:
    """Returns by which share of the largest number outputs or states differ from fp64."""
    errors = [
        (one.double() - right).abs().max() / right.abs().max() - torch.finfo(one.dtype).eps
        for one, right in zip(got, case.exact(), strict=True)
    ]
    return torch.stack(errors).max().item()


def untouched(case: Case, wkv: torch.Tensor) -> bool:
    others = sorted(set(range(len(wkv))) - case.touched())
    assert others
    return torch.equal(wkv[others], case.wkv[others])


def interpreted(case: Case, *, ieee: bool = False) -> Result:
    """What the kernels give; for `Interpreter`."""
    with mock.patch.object(kernels(), "_without_tf32x3", set()):
        if ieee:
            kernels().give_up_tf32x3(CPU)
        return case.read(kernels().time_mix)


def in_ieee(case: Case) -> Result:
    """Likewise, as where there is no TF32."""
    return interpreted(case, ieee=True)


def tried() -> list[str | None]:
    """What the trial says, likewise; then as if products were in TF32."""

    def works() -> str | None:
        why: str | None = trial().works(CPU, 32, torch.float32, torch.float32)
        return why

    with tf32_products():
        rounded = works()
    return [works(), rounded]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        *((name, interpreted) for name in CASES),
        ("ragged", in_ieee),
        *(
            pytest.param(name, in_ieee, marks=pytest.mark.thorough)
            for name in ("least decay", "fp16 states")
        ),
    ],
)
def test_it_is_what_the_formulas_give(interpreter: Interpreter, name: str, read: Any) -> None:
    given = case(name)
    got = interpreter.run(read, given)
    assert off(given, got) < 1e-5
    assert untouched(given, got[1])


def test_padding_rows_share_a_spare_cell(interpreter: Interpreter) -> None:
    given = padded()
    y, wkv = interpreter.run(interpreted, given)
    right_y, right_wkv = given.exact()
    assert (y - right_y)[:2].abs().max() < 1e-5
    assert (wkv - right_wkv)[[2, 9]].abs().max() < 1e-5
    assert untouched(given, wkv)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(24))
def test_a_drawn_case(interpreter: Interpreter, seed: int) -> None:
    got = interpreter.run(interpreted, drawn(seed))
    assert off(drawn(seed), got) < 1e-5
    assert untouched(drawn(seed), got[1])


def test_a_trial_does_not_mind_tf32(interpreter: Interpreter) -> None:
    """Its oracle once ran under the process's own setting, and refused a right kernel."""
    assert interpreter.run(tried) == [None, None]
    given = case("ragged")
    with tf32_products():
        assert off(given, given.read(PlainKernels().time_mix)) > 2 * trial().TOLERANCE


def works_with(
    time_mix: TimeMix, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float16
) -> Any:
    monkeypatch.setattr(kernels(), "_without_tf32x3", set())
    monkeypatch.setattr(kernels(), "time_mix", time_mix)
    return trial().works(CPU, 64, dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_trial_finds_out_what_is_wrong(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = PlainKernels().time_mix

    def in_tf32(*given: Any) -> Any:
        with tf32_products():
            return plain(*given)

    def unwritten(*given: Any) -> Any:
        *others, wkv, at = given
        return plain(*others, wkv.clone(), at)

    assert works_with(plain, monkeypatch, dtype) is None
    assert "off by 0.01 " in works_with(
        lambda *given: plain(*given) * 1.01, monkeypatch, torch.float32
    )
    assert "off by nan " in works_with(lambda *given: plain(*given) * math.nan, monkeypatch, dtype)
    assert "off by " in works_with(in_tf32, monkeypatch, dtype)
    assert "off by " in works_with(unwritten, monkeypatch, dtype)


def test_a_trial_says_what_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    why = works_with(kernels().time_mix, monkeypatch)  # Triton runs nothing on a CPU
    assert why.startswith("decode does not run: ")
    assert "head size of 48 is none of 32, 64, 128" in trial().works(
        CPU, 48, torch.float16, torch.float32
    )


def test_a_device_without_tf32x3_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain: Any = PlainKernels().time_mix

    def right_in_ieee(*given: Any) -> Any:
        return plain(*given) * (1 + (kernels().precision(CPU) == "tf32x3") / 10)

    assert works_with(right_in_ieee, monkeypatch) is None
    assert trial().works(CPU, 64, torch.float16, torch.float32) is None
    assert kernels().precision(CPU) == "ieee"
    assert caplog.text.count("ieee is used") == 1


@pytest.mark.parametrize(
    ("capability", "form"), [((7, 5), "ieee"), ((8, 0), "tf32x3"), ((12, 0), "tf32x3")]
)
def test_the_form_of_products_is_the_capability_s(
    capability: tuple[int, int], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernels().precision(torch.device("cuda:0")) == form


@pytest.mark.parametrize(
    ("lengths", "launches"),
    [((1, 1), ["_decode"]), ((3, 1), ["_prepare", "_advance", "_finish"])],
)
def test_launches(
    lengths: tuple[int, ...], launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    for name in ("_decode", "_prepare", "_advance", "_finish"):
        counted = mock.MagicMock()
        counted.__getitem__.side_effect = lambda grid, name=name: (
            lambda *given, **fixed: launched.append(name)
        )
        monkeypatch.setattr(kernels(), name, counted)
    random_case(0, lengths).read(kernels().time_mix)
    assert launched == launches


@pytest.mark.parametrize("name", ["_decode", "_prepare", "_advance", "_finish"])
def test_nothing_is_compiled_anew_for_other_numbers(name: str) -> None:
    for argument in getattr(kernels(), name).params:
        if argument.is_constexpr:
            assert argument.name in ("size", "block", "chunk", "precision")
        elif not argument.name.endswith("_at"):
            assert argument.do_not_specialize, argument.name
        elif argument.name in ("before_at", "after_at", "start_at", "part_at", "end_at"):
            assert argument.do_not_specialize_on_alignment, argument.name


def made_for(
    capability: int,
    name: str,
    size: int,
    form: str | None = None,
    state: str = "fp32",
    dtype: str = "fp16",
) -> Any:
    module = kernels()
    settled = "ieee" if capability < 80 else "tf32x3"
    prepared, advanced = module.precisions(size, form or settled)
    fixed: dict[str, Any] = {"size": size, "chunk": module.CHUNK, "block": module.BLOCK}
    fixed["precision"] = prepared if name == "_prepare" else advanced
    others = dict.fromkeys(module.INDEXES, "*i32") | {"count": "i32", "heads": "i32"}
    others |= dict.fromkeys(("w_at", "made_at", "bonus_at"), "*fp32") | {"wkv_at": f"*{state}"}
    kernel = getattr(module, name)
    options = {
        "_decode": {"num_warps": module.decode_warps(size)},
        "_finish": {"num_warps": size // 32},
    }
    return compiled_for(
        capability,
        kernel,
        {each: others.get(each, f"*{dtype}") for each in kernel.arg_names if each not in fixed},
        {each: value for each, value in fixed.items() if each in kernel.arg_names},
        loose=module.INDEXES,
        **options.get(name, module.chunk_options(size)),
    )


def check(capability: int, size: int, **kinds: str) -> None:
    for name in ("_decode", "_prepare", "_advance", "_finish"):
        made = made_for(capability, name, size, **kinds)
        what = f"{name} at {size} for sm_{capability}: {made[:3]}"
        assert made.registers <= MOST_REGISTERS, what
        assert made.spilled == 0, what
        assert made.shared <= MOST_SHARED[capability], what
        tensor_cores = made.count(r"mma[.]sync|wgmma|tcgen05")
        three = made.count(r"mma[.]sync\S*[.]tf32[.]tf32")
        assert tensor_cores == three, what
        if name == "_advance" or (name == "_prepare" and size < 128):
            assert (three > 0) == (capability >= 80 and kinds.get("form") != "ieee"), what


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@compiles
@pytest.mark.usefixtures("cache")
def test_it_compiles_for_a_card_that_is_not_here() -> None:
    check(90, 64)


@compiles
@pytest.mark.thorough
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_it_compiles_for_all_cards(capability: int, size: int) -> None:
    check(capability, size)


@compiles
@pytest.mark.thorough
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize(
    "kinds", [{"state": "fp16"}, {"dtype": "fp32"}, {"dtype": "bf16"}, {"form": "ieee"}], ids=str
)
def test_it_compiles_for_all_kinds(capability: int, kinds: dict[str, str]) -> None:
    check(capability, 64, **kinds)


@compiles
@pytest.mark.thorough
@pytest.mark.usefixtures("cache")
def test_no_product_is_in_plain_tf32() -> None:
    """Each is in three, of what TF32 holds and of what it leaves."""
    pattern = r"mma[.]sync\S*[.]tf32[.]tf32"
    rounding, whole = (made_for(80, "_advance", 64, form) for form in ("tf32", "tf32x3"))
    assert whole.count(pattern) == 3 * rounding.count(pattern) > 0
    assert "tf32" not in made_for(80, "_advance", 64, "ieee").ptx


def kernels() -> Any:
    """Returns the module: there may be no Triton to import where the tests are collected."""
    return importlib.import_module("langchain_rwkv_state.runtime.cuda.recurrence_kernels")


def trial() -> Any:
    """Likewise."""
    return importlib.import_module("langchain_rwkv_state.runtime.cuda.recurrence_trial")
