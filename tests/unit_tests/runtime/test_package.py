"""The adapter's promises, and each trap of the `rwkv` package that it closes."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors
from langchain_rwkv_state.runtime.rwkv_package import adapter as package
from langchain_rwkv_state.runtime.rwkv_package.adapter import PackageModel
from langchain_rwkv_state.runtime.rwkv_package.namespace import Namespace
from langchain_rwkv_state.runtime.strategy import Strategy
from langchain_rwkv_state.state import RWKVState, encode
from tests.helpers.checkpoints import VERSIONS, random_checkpoint, write_checkpoint

Load = Callable[..., Runtime]
TOKENS = [(11 * n * n + n) % 288 for n in range(12)]
OTHERS = [(5 * n * n + 2 * n) % 288 for n in range(12)]


def bits(state: RWKVState) -> list[torch.Tensor]:
    """Copies every tensor of a state."""
    return [state[name] for name in state]


def step_by_step(
    runtime: Runtime, tokens: list[int], state: RWKVState | None = None
) -> tuple[torch.Tensor, RWKVState]:
    state = state or runtime.zero_state()
    logits = torch.empty(0)
    for token in tokens:
        logits, state = runtime.forward([token], state)
    return logits, state


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_forward_leaves_the_state_it_was_handed_bit_for_bit(
    load: Load, device: str, version: float, dtype: str
) -> None:
    runtime = load(version, f"{device} {dtype}")
    _, state = runtime.forward(TOKENS, runtime.zero_state())
    before = bits(state)
    for count in (1, 2, len(OTHERS)):
        _, after = runtime.forward(OTHERS[:count], state)
        assert all(map(torch.equal, before, bits(state)))
        assert not any(map(torch.equal, before, bits(after)))
        own = {state.shared(name).untyped_storage().data_ptr() for name in state}
        assert not own & {after.shared(name).untyped_storage().data_ptr() for name in after}


@pytest.mark.parametrize("version", [4, 6, 7])
def test_the_state_is_left_also_where_torchscript_runs(tmp_path: Path, version: float) -> None:
    model = _scripted(write_checkpoint(tmp_path / "m.pth", version, n_embd=64, head_size=32))
    plain = load_runtime(tmp_path / "m.pth", "package cpu fp32")
    first = plain.zero_state()
    for tokens in (TOKENS, TOKENS[:1], TOKENS[:5], TOKENS[:1], TOKENS):
        tensors = [first.shared(name) for name in first]
        before = bits(first)
        logits, _ = model.forward(tokens, tensors)
        assert all(map(torch.equal, before, tensors))
        assert torch.allclose(logits, plain.forward(tokens, first)[0], atol=1e-5, rtol=0)
    plain.close()


def test_the_state_is_left_where_kernels_write_into_it(tmp_path: Path) -> None:
    """The package's CUDA kernels change the accumulators in place; here a stand-in does."""
    path = write_checkpoint(tmp_path / "m.pth", 7)
    tensors = read_tensors(path)
    model = PackageModel(tensors, Checkpoint.of(tensors, path), Strategy.parse("package cpu fp32"))
    model._writes_into_state = True

    class Kernels:
        def forward(self, tokens: list[int], state: list[torch.Tensor]) -> Any:
            for tensor in state:
                tensor.add_(1)
            return torch.zeros(288), state

    model._model = Kernels()
    handed = [torch.zeros(spec.shape, dtype=spec.dtype) for spec in model.layout.specs]
    _, after = model.forward([1], handed)
    assert all(tensor.eq(0).all() for tensor in handed)
    assert all(tensor.eq(1).all() for tensor in after)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_sequence_and_single_steps_and_chunks_agree(
    load: Load, version: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = load(version)
    expected, state = runtime.forward(TOKENS, runtime.zero_state())
    logits, same = step_by_step(runtime, TOKENS)
    assert torch.allclose(logits, expected, atol=1e-5, rtol=0)
    for name in state:
        assert torch.allclose(state[name], same[name], atol=1e-5, rtol=1e-5)
    assert state.derivation == same.derivation
    assert state.n_tokens == len(TOKENS)
    for chunk in (1, 5, 11):
        monkeypatch.setattr(runtime._model, "_chunk", chunk)  # type: ignore[attr-defined]
        assert torch.allclose(
            runtime.forward(TOKENS, runtime.zero_state())[0], expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_state_holds_no_more_than_its_nominal_size(
    load: Load, device: str, version: float, dtype: str
) -> None:
    runtime = load(version, f"{device} {dtype}")
    for state in (
        runtime.zero_state(),
        runtime.forward(TOKENS, runtime.zero_state())[1],
        runtime.forward(TOKENS * 10, runtime.zero_state())[1],
        step_by_step(runtime, TOKENS[:2])[1],
    ):
        assert state.nbytes == runtime.layout.nbytes
        assert len(encode(state)) - runtime.layout.nbytes <= 2048


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_logits_belong_to_the_caller(load: Load, device: str, version: float, dtype: str) -> None:
    runtime = load(version, f"{device} {dtype}")
    for tokens in (TOKENS, TOKENS[:1]):
        logits, _ = runtime.forward(tokens, runtime.zero_state())
        assert logits.shape == (runtime.vocab_size,)
        assert logits.dtype == torch.float32
        assert logits.device.type == "cpu"
        assert logits.is_contiguous()
        assert logits.untyped_storage().nbytes() == 4 * runtime.vocab_size
        assert not logits.requires_grad
        kept = logits.clone()
        again, _ = runtime.forward(tokens, runtime.zero_state())
        assert torch.equal(logits, kept)
        again.zero_()
        assert torch.equal(runtime.forward(tokens, runtime.zero_state())[0], kept)


def test_models_of_several_versions_and_dtypes_live_side_by_side(load: Load) -> None:
    wanted = [
        (7, "package cpu fp32"),
        (7, "package cpu bf16"),
        (4, "package cpu fp32"),
        (5.2, "package cpu bf16"),
        (6, "package cpu fp32"),
    ]
    alone = []
    for version, strategy in wanted:
        runtime = load(version, strategy)
        alone.append(step_by_step(runtime, TOKENS))
        runtime.close()
    together = [load(version, strategy) for version, strategy in wanted]
    states = [runtime.zero_state() for runtime in together]
    logits = [torch.empty(0)] * len(together)
    for token in TOKENS:
        for index, runtime in enumerate(together):
            logits[index], states[index] = runtime.forward([token], states[index])
    for (expected, state), found, same in zip(alone, logits, states, strict=True):
        assert torch.equal(found, expected)
        assert same == state


def test_a_batch_equals_one_after_the_other(load: Load) -> None:
    runtime = load(7)
    rows = [TOKENS, OTHERS[:1], OTHERS]
    states = [runtime.zero_state(), step_by_step(runtime, OTHERS)[1], runtime.zero_state()]
    logits, after = runtime.forward_batch(rows, states)
    assert logits.shape == (3, runtime.vocab_size)
    for row, state, found, new in zip(rows, states, logits, after, strict=True):
        expected, same = runtime.forward(row, state)
        assert torch.equal(found, expected)
        assert new == same
    empty, none = runtime.forward_batch([], [])
    assert empty.shape == (0, runtime.vocab_size)
    assert none == []


def test_tokens_are_checked(load: Load) -> None:
    runtime = load(7)
    zero = runtime.zero_state()
    with pytest.raises(ValueError, match="no tokens"):
        runtime.forward([], zero)
    for wrong in (-1, runtime.vocab_size):
        with pytest.raises(ValueError, match=f"Token {wrong} is not in the model's vocabulary"):
            runtime.forward([1, wrong], zero)
    with pytest.raises(TypeError):
        runtime.forward([1.5], zero)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 sequences were given with 1 states"):
        runtime.forward_batch([[1], [2]], [zero])
    runtime.forward(torch.tensor([1, 2]), zero)  # type: ignore[arg-type]


def test_a_state_of_another_model_or_dtype_is_refused(load: Load) -> None:
    runtime, other, bf16 = load(7), load(7, seed=1), load(7, "package cpu bf16")
    with pytest.raises(StateMismatch, match="another weights"):
        runtime.forward([1], other.zero_state())
    with pytest.raises(StateMismatch, match="another compute dtype"):
        runtime.forward([1], bf16.zero_state())
    forged = load(6).zero_state().with_fingerprint(runtime.fingerprint)
    with pytest.raises(StateMismatch, match="tensors are those of"):
        runtime.forward([1], forged)


def test_tokenizer_and_template_are_the_callers_business(load: Load, tmp_path: Path) -> None:
    runtime = load(7)
    named = load_runtime(tmp_path / "7-0.pth", "package cpu fp32", "digest", template="world")
    assert named.fingerprint == runtime.fingerprint.removesuffix("-/-") + "digest/world"
    _, state = named.forward([1], runtime.zero_state())
    assert state.fingerprint == runtime.fingerprint
    named.close()


@pytest.mark.parametrize(
    ("strategy", "compute", "shift"),
    [
        ("package cpu fp32", "fp32", ("fp32", "fp32", "fp32")),
        ("package cpu fp32i8 *2 -> cpu bf16", "fp32i8*2+bf16", ("fp32", "fp32", "bf16")),
        ("package cpu bf16 *1 -> cpu bf16", "bf16", ("bf16", "bf16", "bf16")),
        ("package cpu fp32 *1+", "fp32", ("fp32", "fp32", "fp32")),
        ("package cpu fp16 *3 -> cpu fp32", "fp16*3+fp32", ("fp16", "fp16", "fp16")),
    ],
)
@pytest.mark.parametrize("version", [4, 5.2, 6])
def test_strategies_of_several_stages(
    load: Load, version: float, strategy: str, compute: str, shift: tuple[str, ...]
) -> None:
    plain, staged = load(version, n_layer=3), load(version, strategy, n_layer=3)
    assert staged.fingerprint.split("/")[1] == compute
    assert staged.layout.shift_dtypes == shift
    logits, state = staged.forward(TOKENS, staged.zero_state())
    assert state.nbytes == staged.layout.nbytes
    assert (logits - plain.forward(TOKENS, plain.zero_state())[0]).abs().max() < 0.15
    again, _ = step_by_step(staged, TOKENS)
    assert (logits - again).abs().max() < 0.05


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.02), ("bf16", 0.1)])
def test_half_precision_runs_on_the_cpu_and_is_near(
    load: Load, version: float, dtype: str, tolerance: float
) -> None:
    expected, _ = step_by_step(load(version), TOKENS)
    logits, _ = step_by_step(load(version, f"package cpu {dtype}"), TOKENS)
    assert (logits - expected).abs().max() < tolerance


def test_the_package_alone_holds_the_weights_while_it_converts_them() -> None:
    namespace, weights = Namespace(version_7=True), {"emb.weight": torch.ones(1)}
    held: list[int] = []

    def package(path: str, strategy: str) -> dict[str, torch.Tensor]:
        handed = namespace._torch.load(path)
        held.append(len(weights))
        with pytest.raises(RuntimeError, match="handed over already"):
            namespace._torch.load(path)
        return handed

    namespace._globals["RWKV"] = package
    assert list(namespace.load(weights, "cpu fp32")) == ["emb.weight"]
    assert held == [0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [
        ("package cpu fp32", torch.float32),
        ("package cpu fp32", torch.bfloat16),
        ("package cpu bf16", torch.bfloat16),
        ("package cpu bf16", torch.float32),
    ],
)
def test_a_loaded_model_is_free_of_its_file(
    load: Load, tmp_path: Path, version: float, strategy: str, suffix: str, dtype: torch.dtype
) -> None:
    runtime = load(version, strategy, suffix=suffix, dtype=dtype)
    expected, _ = runtime.forward(TOKENS, runtime.zero_state())
    path = tmp_path / f"{version}-0{suffix}"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(runtime.forward(TOKENS, runtime.zero_state())[0], expected)
    with path.open("r+b") as file:
        file.truncate(10)
    assert torch.equal(runtime.forward(TOKENS, runtime.zero_state())[0], expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("version", VERSIONS)
def test_one_layer_is_enough(load: Load, version: float, suffix: str) -> None:
    """The package finds the heads of 5 and 6 in the second layer where the order is BlinkDL's."""
    runtime = load(version, suffix=suffix, n_layer=1)
    assert runtime.forward(TOKENS, runtime.zero_state())[0].isfinite().all()


@pytest.mark.parametrize("version", [5.2, 6])
def test_a_tuned_start_state_is_where_it_starts(load: Load, version: float) -> None:
    runtime = load(version, tuned_state=True)
    zero = runtime.zero_state()
    assert zero["blocks.1.att_kv"].abs().max() > 0
    assert zero.n_tokens == 0
    before = bits(zero)
    runtime.forward(TOKENS, zero)
    assert all(map(torch.equal, before, bits(runtime.zero_state())))


def test_an_rwkv_7_with_deep_embed_runs(tmp_path: Path) -> None:
    tensors = random_checkpoint(7, n_embd=64, head_size=32)
    random = torch.Generator().manual_seed(0)
    for layer in range(2):
        shapes = {"s_emb.weight": (288, 1024), "s_emb_x.weight": (1024, 64), "s0": (1, 1, 256)}
        for name, shape in (shapes | {"s1": (64, 32), "s2": (32, 256)}).items():
            tensors[f"blocks.{layer}.ffn.{name}"] = torch.randn(shape, generator=random) * 0.1
    runtime = load_runtime(
        write_checkpoint(tmp_path / "m.pth", tensors=tensors), "package cpu fp32"
    )
    logits, _ = runtime.forward(TOKENS, runtime.zero_state())
    assert torch.allclose(step_by_step(runtime, TOKENS)[0], logits, atol=1e-5, rtol=0)
    runtime.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_printed_or_warned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], version: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_checkpoint(tmp_path / "m.pth", version, n_embd=64, head_size=32)
        for strategy in ["package cpu fp32", "package cpu bf16"] + ["package cpu fp32 *1+"] * (
            version != 7
        ):
            runtime = load_runtime(path, strategy)
            step_by_step(runtime, TOKENS[:2])
            runtime.close()
        _scripted(path).forward([1], _zeros(path))
    assert capfd.readouterr() == ("", "")


FLAGS = [
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
]


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("value", [False, True])
def test_flags_of_pytorch_are_left_as_they_were(load: Load, version: float, value: bool) -> None:
    before = [getattr(place, name) for place, name in FLAGS]
    try:
        for place, name in FLAGS:
            setattr(place, name, value)
        runtime = load(version)
        runtime.forward(TOKENS, runtime.zero_state())
        assert [getattr(place, name) for place, name in FLAGS] == [value] * 3
    finally:
        for (place, name), old in zip(FLAGS, before, strict=True):
            setattr(place, name, old)


@pytest.mark.parametrize("version", [4, 5.2, 6, 7])
def test_the_process_is_left_as_it_was(
    load: Load, version: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_V7_ON", "0")
    monkeypatch.setenv("RWKV_JIT_ON", "1")
    monkeypatch.delenv("RWKV_CUDA_ON", raising=False)
    autocast = torch._C._jit_set_autocast_mode(True)
    before, real_load = dict(os.environ), torch.load
    runtime = load(version)
    step_by_step(runtime, TOKENS[:2])
    runtime.forward(TOKENS, runtime.zero_state())
    assert torch._C._jit_set_autocast_mode(autocast) is True
    assert dict(os.environ) == before
    assert torch.load is real_load
    assert "rwkv.model" not in sys.modules


@pytest.mark.parametrize("version", VERSIONS)
def test_the_packages_switches_in_the_environment_do_not_matter(
    load: Load, version: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = step_by_step(load(version), TOKENS[:4])
    for name in ("RWKV_V7_ON", "RWKV_JIT_ON", "RWKV_CUDA_ON", "RWKV_DE_VERSION", "RWKV_DML_ON"):
        monkeypatch.setenv(name, "1")
    fresh = load(version, suffix=".safetensors")
    assert torch.equal(step_by_step(fresh, TOKENS[:4])[0], expected)


@pytest.mark.parametrize(
    ("version", "scripted"), [(4, False), (6, False), (7, False), (6, True), (7, True)]
)
def test_threads_may_share_a_runtime(tmp_path: Path, version: float, scripted: bool) -> None:
    path = write_checkpoint(tmp_path / "m.pth", version, n_embd=64, head_size=32)
    model = _scripted(path) if scripted else load_runtime(path, "package cpu fp32")._model  # type: ignore[attr-defined]
    rows = [[(seed * n + n * n) % 288 for n in range(24)] for seed in range(4)]

    def read(row: list[int]) -> torch.Tensor:
        logits, tensors = torch.empty(0), _zeros(path)
        for start in range(0, 24, 8):
            logits, tensors = model.forward(row[start : start + 7], tensors)
            logits, tensors = model.forward(row[start + 7 : start + 8], tensors)
        return logits

    found: dict[int, torch.Tensor] = {}
    start = threading.Barrier(4)

    def work(index: int) -> None:
        start.wait()
        found[index] = read(rows[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, row in enumerate(rows):
        assert torch.allclose(found[index], read(row), atol=1e-5, rtol=0)


def test_gradients_and_autocast_of_the_caller_do_not_matter(load: Load) -> None:
    runtime = load(7)
    expected, state = runtime.forward(TOKENS, runtime.zero_state())
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, same = runtime.forward(TOKENS, runtime.zero_state())
    assert torch.equal(logits, expected)
    assert same == state
    with torch.inference_mode():
        logits, same = runtime.forward(TOKENS, runtime.zero_state())
    assert torch.equal(logits, expected)
    assert same == state


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchScript is gone")
def test_a_large_model_is_compiled_by_torchscript_and_a_small_one_is_not(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _is_scripted(load(7, "package cpu fp32"))
    monkeypatch.setattr(package, "_SCRIPTED_FROM_BYTES", 1000)
    assert _is_scripted(load(7, "package cpu fp32", seed=1))


def _is_scripted(runtime: Runtime) -> bool:
    return isinstance(runtime._model._model, torch.jit.ScriptModule)  # type: ignore[attr-defined]


def _scripted(path: Path) -> PackageModel:
    tensors = read_tensors(path)
    checkpoint = Checkpoint.of(tensors, path)
    return PackageModel(tensors, checkpoint, Strategy.parse("package cpu fp32"), scripted=True)


def _zeros(path: Path) -> list[torch.Tensor]:
    runtime = load_runtime(path, "package cpu fp32")
    state = runtime.zero_state()
    runtime.close()
    return [state.shared(name) for name in state]
