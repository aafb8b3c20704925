"""Strategies: what is read, what is refused, and before what."""

from __future__ import annotations

import pytest
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.strategy import Stage, Strategy


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("cpu fp32", [Stage("cpu", "fp32")]),
        ("cuda:1 bf16", [Stage("cuda:1", "bf16")]),
        ("cuda fp16i8", [Stage("cuda", "fp16", weights="int8")]),
        (
            "cuda fp16i8 *10 -> cpu fp32",
            [Stage("cuda", "fp16", weights="int8", layers=10), Stage("cpu", "fp32")],
        ),
        ("cuda fp16 *10+", [Stage("cuda", "fp16", layers=10, streams=True)]),
    ],
)
def test_strategies_are_read_and_written(text: str, stages: list[Stage]) -> None:
    parsed = Strategy.parse(text)
    assert parsed.stages == tuple(stages)
    assert parsed.runtime == "auto"
    assert str(parsed) == parsed.for_package == text
    named = Strategy.parse(f"package  {text}")
    assert (named.stages, named.runtime) == (parsed.stages, "package")
    assert (str(named), named.for_package) == (f"package {text}", text)


def test_spaces_do_not_matter() -> None:
    assert str(Strategy.parse(" cuda  fp16 *3->cpu fp32 ")) == "cuda fp16 *3 -> cpu fp32"


def test_auto_is_the_card_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(Strategy.parse("auto")) == "cuda fp16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(Strategy.parse("auto")) == "cpu fp32"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "package",
        "package auto",
        "package cpu int8",
        "cuda int8 *2",
        "cuda fp8 -> cpu fp32",
        "gpu fp16",
        "cpu",
        "cpu fp64",
        "cpu fp16 10",
        "cpu fp32 ->",
        "cpu fp32i4",
        "rocm",
    ],
)
def test_an_unknown_strategy_is_refused_with_what_is_possible(text: str) -> None:
    with pytest.raises(
        ModelLoadError, match=r"not known: use 'auto', '<device> <dtype>' with .*'package'"
    ):
        Strategy.parse(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("cuda", "cuda fp16"),
        ("cuda:1", "cuda:1 fp16"),
        ("CPU", "cpu fp32"),
        ("gpu fp16", "cuda fp16"),
        ("cuda float16", "cuda fp16"),
        ("CUDA FP8", "cuda fp8"),
        ("cuda int4", "cuda int8"),
    ],
)
def test_what_was_meant_is_named(text: str, meant: str) -> None:
    with pytest.raises(ModelLoadError, match=f"Perhaps '{meant}' was meant"):
        Strategy.parse(text)


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    with pytest.raises(ModelLoadError) as caught:
        Strategy.parse("rocm")
    assert "Perhaps" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "stage", "shown"),
    [
        ("native cpu fp32", Stage("cpu", "fp32"), "native cpu fp32"),
        ("native cuda:1 bf16", Stage("cuda:1", "bf16"), "native cuda:1 bf16"),
        ("cpu int8", Stage("cpu", "fp32", weights="int8"), "native cpu int8"),
        ("native  cpu int8", Stage("cpu", "fp32", weights="int8"), "native cpu int8"),
        ("cuda int8", Stage("cuda", "fp16", weights="int8"), "native cuda int8"),
        ("cuda:1 fp8", Stage("cuda:1", "fp16", weights="fp8"), "native cuda:1 fp8"),
        (
            "cuda bf16 state_fp16",
            Stage("cuda", "bf16", state_dtype="fp16"),
            "native cuda bf16 state_fp16",
        ),
        (
            "native cuda fp8  state_fp16",
            Stage("cuda", "fp16", "fp8", state_dtype="fp16"),
            "native cuda fp8 state_fp16",
        ),
    ],
)
def test_the_native_runtime_has_names_of_its_own(text: str, stage: Stage, shown: str) -> None:
    parsed = Strategy.parse(text)
    assert parsed.stages == (stage,)
    assert parsed.runtime == "native"
    assert str(parsed) == shown
    assert Strategy.parse(shown) == parsed


def test_whatever_rounds_otherwise_computes_under_another_name() -> None:
    texts = ["cpu fp32", "cpu int8", "cuda fp16", "cuda bf16", "cuda int8", "cuda fp8"]
    texts += [f"{text} state_fp16" for text in texts[2:]]
    names = [Strategy.parse(text).stages[0].compute for text in texts]
    assert len(set(names)) == len(names)
    assert names[:4] == ["fp32", "int8", "fp16", "bf16"]  # which stored states have


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cpu fp32 state_fp16", "WKV states in fp16, which is only possible on a CUDA card"),
        ("native mps fp8", "weights in fp8, which is only possible on a CUDA card"),
        ("cpu fp8", "use 'cuda' for 'cpu'"),
        ("auto state_fp16", "write 'cuda fp16 state_fp16'"),
        ("package cuda fp16 state_fp16", "the native runtime alone can choose"),
        ("cuda fp16 state_bf16", "only fp16 on a CUDA card"),
        ("cuda fp16 *20 -> cpu fp32 state_fp16", "leave the word out"),
    ],
)
def test_what_a_device_cannot_keep_is_refused(text: str, told: str) -> None:
    with pytest.raises(ModelLoadError, match=told):
        Strategy.parse(text)


@pytest.mark.parametrize("text", ["native", "native cpu", "native cpu fp32 *2", "int8", "gpu int8"])
def test_an_unknown_native_strategy_is_refused(text: str) -> None:
    with pytest.raises(ModelLoadError, match="not known: use 'auto', '<device> <dtype>'"):
        Strategy.parse(text)


def test_which_models_the_native_runtime_takes() -> None:
    auto, native = Strategy.parse("auto"), Strategy.parse("native cpu fp32")
    for strategy in (auto, native, Strategy.parse("cuda fp16"), Strategy.parse("cuda int8")):
        assert strategy.is_native_for("7", deep_embed=False)
    assert not auto.is_native_for("6", deep_embed=False)
    assert not auto.is_native_for("7", deep_embed=True)
    assert not Strategy.parse("package cpu fp32").is_native_for("7", deep_embed=False)
    with pytest.raises(ModelLoadError, match="is for RWKV-7, and this is an RWKV 6: use 'auto'"):
        native.is_native_for("6", deep_embed=False)
    with pytest.raises(ModelLoadError, match="with DeepEmbed"):
        native.is_native_for("7", deep_embed=True)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelLoadError, match=r"no CUDA device: use 'auto' or 'cpu fp32'; .*doctor"):
        Strategy.parse("cpu fp32 *1 -> cuda fp16").require_devices()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Strategy.parse("cuda fp16").require_devices()
    with pytest.raises(ModelLoadError, match="only 1 CUDA device"):
        Strategy.parse("cuda:1 fp16").require_devices()


@pytest.mark.parametrize(
    "text", ["cpu fp32i8", "cpu fp32 *2", "cpu fp32 *2+", "cpu fp32 *1 -> cpu bf16", "dml fp32"]
)
def test_what_the_package_would_silently_drop_is_refused_for_rwkv_7(text: str) -> None:
    strategy = Strategy.parse(f"package {text}")
    strategy.require_for("6")
    with pytest.raises(ModelLoadError, match="not possible for RWKV-7"):
        strategy.require_for("7")


@pytest.mark.parametrize(
    "text",
    ["cuda fp16 *20 -> cpu fp32", "cuda:0 fp16 *9 -> cuda:1 fp16", "cuda fp16i8", "dml fp32"],
)
def test_several_devices_are_for_older_versions(text: str) -> None:
    strategy = Strategy.parse(text)
    assert not strategy.is_native_for("6", deep_embed=False)
    strategy.require_for("6")
    with pytest.raises(
        ModelLoadError, match=r"native runtime (has|runs) .*\. Use 'auto'.*'cuda int8'"
    ):
        strategy.is_native_for("7", deep_embed=False)
