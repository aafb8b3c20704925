"""`load_runtime`: which file is meant, that it loads once, and that closing frees it."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

import langchain_rwkv_state.runtime.hub as hub
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime import Runtime, load_runtime, loader
from langchain_rwkv_state.runtime.checkpoint import read_tensors
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.registry import MODELS
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint

MEGABYTE = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m.pth", 7, n_embd=64, head_size=32)


@pytest.fixture(autouse=True)
def _all_given_back() -> Iterator[None]:
    before = MODELS.values()  # what another test left may go meanwhile
    yield
    assert all(shared in before for shared in MODELS.values())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Lists the files that were read."""
    read: list[Path] = []

    def counted(path: Path, *, mapped: bool = False, **more: Any) -> dict[str, torch.Tensor]:
        if not mapped:
            read.append(path)
        return read_tensors(path, mapped=mapped, **more)

    monkeypatch.setattr(loader, "read_tensors", counted)
    return read


def same_weights(*runtimes: Runtime) -> bool:
    models = {id(runtime._model) for runtime in runtimes}  # type: ignore[attr-defined]
    return len(models) == 1


def test_it_is_a_runtime(model: Path) -> None:
    runtime = load_runtime(model, "cpu fp32")
    assert isinstance(runtime, Runtime)
    assert runtime.vocab_size == 288
    assert runtime.layout.version == 7
    assert "m.pth" in repr(runtime)
    runtime.close()
    assert "closed" in repr(runtime)


@pytest.mark.posix
def test_one_load_of_a_file_and_strategy_serves_everyone(
    model: Path, tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.pth").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    names: list[str | Path] = [model, str(model), "m.pth", "./m.pth", tmp_path / "link.pth"]
    runtimes = [load_runtime(name, "cpu  fp32") for name in names]
    assert len(loads) == 1
    assert same_weights(*runtimes)
    other = load_runtime(model, "cpu bf16")
    assert not same_weights(other, runtimes[0])
    for runtime in [*runtimes, other]:
        runtime.close()


def test_threads_that_come_at_once_load_once(model: Path, loads: list[Path]) -> None:
    found: list[Runtime] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_runtime(model, "cpu fp32")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(found) == 6
    assert same_weights(*found)
    for runtime in found:
        runtime.close()


def test_closing_twice_gives_back_once(model: Path) -> None:
    first, second = load_runtime(model, "cpu fp32"), load_runtime(model, "cpu fp32")
    first.close()
    first.close()
    second.forward([1], second.zero_state())
    second.close()


def test_a_closed_runtime_says_so(model: Path) -> None:
    runtime = load_runtime(model, "cpu fp32")
    zero = runtime.zero_state()
    runtime.close()
    assert runtime.layout == zero.layout
    for call in (
        lambda: runtime.forward([1], zero),
        lambda: runtime.forward_batch([[1]], [zero]),
        runtime.zero_state,
    ):
        with pytest.raises(ModelLoadError, match="was unloaded here: load it again"):
            call()


def test_what_is_forgotten_is_given_back(model: Path) -> None:
    held = len(MODELS)
    runtime = load_runtime(model, "cpu fp32")
    assert len(MODELS) == held + 1
    del runtime
    gc.collect()
    assert len(MODELS) == held


def test_a_changed_file_is_another_model(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.pth", 7)
    first = load_runtime(path, "cpu fp32")
    write_checkpoint(tmp_path / "new.pth", 7, seed=1).replace(path)
    second = load_runtime(path, "cpu fp32")
    assert first.fingerprint != second.fingerprint
    first.forward([1], first.zero_state())
    first.close()
    second.close()


def test_a_wrong_identity_holds_nothing(model: Path) -> None:
    with pytest.raises(Exception, match="is not the fingerprint"):
        load_runtime(model, "cpu fp32", "a/b")


@pytest.mark.parametrize("version", [4, 7])
def test_memory_returns_at_the_last_close(tmp_path: Path, version: float) -> None:
    # Large through the vocabulary, and with repeated rows, which are quick to make.
    tensors = random_checkpoint(version, n_embd=512, n_layer=1, dtype=torch.float16)
    for name in ("emb.weight", "head.weight"):
        tensors[name] = tensors[name].repeat(200, 1)
    size = 4 * sum(tensor.numel() for tensor in tensors.values())
    path = write_checkpoint(tmp_path / "m.pth", tensors=tensors)
    small = write_checkpoint(tmp_path / "s.pth", version)
    command = [sys.executable, "-m", "tests.helpers.load_memory", str(small), str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown = json.loads(shown)
    assert size > 100 * MEGABYTE
    assert 0.8 * size < grown["loaded"] < 1.3 * size
    assert grown["one_left"] > 0.8 * size
    assert grown["closed"] < 0.1 * size


def test_loading_again_and_again_does_not_grow(model: Path) -> None:
    process = psutil.Process()
    sizes = []
    for _ in range(20):
        runtime = load_runtime(model, "cpu fp32")
        runtime.forward([1, 2], runtime.zero_state())
        runtime.close()
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[9] < 4 * MEGABYTE


def test_the_strategy_is_refused_before_anything_is_read(
    tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for strategy in ("fastest", "cuda fp16"):
        with pytest.raises(ModelLoadError, match=strategy):
            load_runtime(tmp_path / "missing.pth", strategy)
    assert not loads


def test_an_impossible_strategy_is_refused_before_weights_are_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PackageModel", None)
    with pytest.raises(ModelLoadError, match="not possible for RWKV-7"):
        load_runtime(model, "cpu fp32i8")


class _TooLarge:
    """A model whose loading takes some memory, and then runs out."""

    error: tuple[type[BaseException], str]
    held: weakref.ref[torch.Tensor]

    def __init__(self, *_: object, **__: object) -> None:
        self.weight = torch.ones(3)
        type(self).held = weakref.ref(self.weight)
        kind, text = self.error
        raise kind(text)


@pytest.mark.parametrize(
    ("kind", "strategy", "error", "advice"),
    [
        (
            "NativeModel",
            "cpu fp32",
            (MemoryError, ""),
            r"'cpu int8', which takes about 3\d\d\.\d kB, a smaller",
        ),
        ("NativeModel", "cpu int8", (torch.OutOfMemoryError, "CUDA out of memory"), "a smaller"),
        (
            "PackageModel",
            "package cpu fp32",
            (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to"),
            "a smaller",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_told_with_figures_and_nothing_of_it_stays(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    strategy: str,
    error: tuple[type[BaseException], str],
    advice: str,
) -> None:
    monkeypatch.setattr(_TooLarge, "error", error, raising=False)
    monkeypatch.setattr(loader, kind, _TooLarge)
    given_back: list[bool] = []
    monkeypatch.setattr(
        loader, "return_memory", lambda: given_back.append(_TooLarge.held() is None)
    )
    with pytest.raises(ModelLoadError, match="did not suffice") as caught:
        load_runtime(model, strategy)
    told = str(caught.value)
    assert re.search(
        rf"take about \d+\.\d [kM]B, and \d+\.\d GB are free .*, or use {advice}", told
    )
    assert str(model) in told
    assert given_back[0]  # and by then it was free
    assert _TooLarge.held() is None
    assert not caught.value.__context__


def test_another_error_of_loading_stays_what_it_is(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_TooLarge, "error", (RuntimeError, "a bug"), raising=False)
    monkeypatch.setattr(loader, "NativeModel", _TooLarge)
    with pytest.raises(RuntimeError, match="a bug"):
        load_runtime(model, "cpu fp32")


def test_a_fallback_is_warned_of_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(NativeModel):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.fallbacks = ("no kernels: install them",)

    monkeypatch.setattr(loader, "NativeModel", Slow)
    first, second = load_runtime(model, "cpu fp32"), load_runtime(model, "cpu fp32")
    for runtime in (first, second):
        assert runtime.fallbacks == ("no kernels: install them",)  # type: ignore[attr-defined]
        runtime.close()
        assert runtime.fallbacks == ()  # type: ignore[attr-defined]
    assert caplog.text.count("slower than it could: no kernels: install them") == 1


def test_what_the_package_raises_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("out of memory")

    monkeypatch.setattr(loader, "PackageModel", broken)
    with pytest.raises(
        ModelLoadError, match=r"m\.pth with the strategy 'package cpu fp32': out of"
    ):
        load_runtime(model, "package cpu fp32")


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("org/repo", "org/repo", None),
        ("BlinkDL/rwkv-7-world/RWKV-x070.pth", "BlinkDL/rwkv-7-world", "RWKV-x070.pth"),
        ("org/repo.v1/sub/m.safetensors", "org/repo.v1", "sub/m.safetensors"),
    ],
)
def test_names_of_the_hub_are_downloaded(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, repo: str, file: str | None
) -> None:
    asked: list[tuple[str, str | None, bool]] = []

    def download(repo: str, file: str | None, *, quiet: bool) -> Path:
        asked.append((repo, file, quiet))
        return model

    monkeypatch.setattr(hub, "download", download)
    assert loader.locate(name) == model
    assert loader.locate(name, quiet=True) == model
    assert asked == [(repo, file, False), (repo, file, True)]


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("off", [False, True])
def test_a_quiet_download_draws_no_bar_and_leaves_the_setting_as_it_was(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    quiet: bool,
    off: bool,
) -> None:
    states: list[bool] = []

    def fetch(*_: object, **__: object) -> str:
        states.append(are_progress_bars_disabled())
        return str(model)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    (disable_progress_bars if off else enable_progress_bars)()
    try:
        with caplog.at_level("INFO", "langchain_rwkv_state"):
            hub.download("org/repo", "m.pth", quiet=quiet)
        assert are_progress_bars_disabled() is off
    finally:
        enable_progress_bars()
    assert states == [quiet or off]
    assert "Downloading m.pth of org/repo" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "m.pth",
        "models/m.pth",
        "models/m.gguf",
        "models/m.st",
        "/org/repo",
        "./org/repo",
        "here/repo/m.pth",
        "C:\\m.pth",
        "",
    ],
)
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(hub, "download", None)
    with pytest.raises(ModelLoadError):
        loader.locate(name)
    with pytest.raises(ModelLoadError):
        loader.locate(Path(name))


def test_a_path_that_exists_wins_over_a_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", None)
    (tmp_path / "org" / "repo").mkdir(parents=True)
    write_checkpoint("org/repo/m.pth", 4)
    assert loader.locate("org/repo/m.pth") == Path("org/repo/m.pth")
    assert loader.locate("org/repo") == Path("org/repo")


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "m.pth", 4)
    assert loader.locate("~/m.pth") == tmp_path / "m.pth"


def test_a_missing_demo_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = pytest.importorskip("langchain_rwkv_state.demo")
    monkeypatch.setattr(demo, "MODEL_PATH", tmp_path / "none.safetensors", raising=False)
    with pytest.raises(ModelLoadError, match="The built-in model is not part"):
        loader.locate("demo")


def test_a_handle_of_its_own_model_is_enough() -> None:
    """Another adapter needs five attributes and two methods, and no file."""

    class Constant:
        layout = random_layout()
        weights, compute, vocab_size, about = "none-0", "fp32", 3, "a constant"

        def zero_tensors(self) -> dict[str, torch.Tensor]:
            return {}

        def forward_batch(
            self, tokens: list[list[int]], states: list[list[torch.Tensor]]
        ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
            logits = torch.arange(3.0).expand(len(tokens), 3)
            pairs = zip(tokens, states, strict=True)
            return logits, [[tensor + len(ids) for tensor in tensors] for ids, tensors in pairs]

    handle = RuntimeHandle(Constant(), lambda: None, name="constant")  # type: ignore[arg-type]
    logits, state = handle.forward([1, 2], handle.zero_state())
    assert logits.tolist() == [0, 1, 2]
    assert state["blocks.0.att_kv"].eq(2).all()


def random_layout() -> object:
    from langchain_rwkv_state.state import StateLayout

    return StateLayout.of(7, n_layer=1, n_embd=4, head_size=2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pth")
    with pytest.raises(ModelLoadError, match="There is no file"):
        load_runtime(tmp_path / "m.pth", "cpu fp32")


def test_an_empty_name_is_not_the_folder_that_the_process_is_in(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(ModelLoadError, match="name is empty: give 'demo'"):
        loader.locate("")
