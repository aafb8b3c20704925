"""What a checkpoint is comes from its tensors; whatever does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, in_loading_order, read_tensors
from tests.helpers.checkpoints import VERSIONS, random_checkpoint, write_checkpoint

PATH = Path("RWKV-x060-named-wrongly.pth")
Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("order", ["as written", "sorted", "reversed"])
def test_version_and_sizes_come_from_the_tensors(version: float, order: str) -> None:
    tensors = random_checkpoint(version, n_layer=3, n_embd=96, head_size=32, vocab=290)
    if order != "as written":
        tensors = dict(sorted(tensors.items(), reverse=order == "reversed"))
    found = Checkpoint.of(tensors, PATH)
    heads = 1 if version == 4 else 3
    assert found.version == f"{version:g}"
    assert (found.n_layer, found.n_embd, found.vocab_size) == (3, 96, 290)
    assert (found.n_head, found.head_size) == (heads, 96 // heads)
    assert found.weights.startswith(f"rwkv{version:g}-")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_lacking_tensor_is_named(version: float) -> None:
    whole = random_checkpoint(version)
    unused = {f"blocks.0.att.v{n}" for n in range(3)}
    for name in whole.keys() - unused:
        with pytest.raises(ModelLoadError):
            Checkpoint.of({n: t for n, t in whole.items() if n != name}, PATH)
    lacking = {n: t for n, t in whole.items() if n != "blocks.1.ffn.key.weight"}
    with pytest.raises(ModelLoadError, match=r"lacks 'blocks\.1\.ffn\.key\.weight'"):
        Checkpoint.of(lacking, PATH)


def test_the_value_residual_of_the_first_layer_may_lack() -> None:
    whole = random_checkpoint(7)
    for name in ("v0", "v1", "v2"):
        del whole[f"blocks.0.att.{name}"]
    found = Checkpoint.of(whole, PATH)
    assert found.version == "7"
    assert found.weights == Checkpoint.of(random_checkpoint(7), PATH).weights  # it is never used


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misshapen_tensor_is_named(version: float) -> None:
    tensors = random_checkpoint(version)
    tensors["blocks.1.att.key.weight"] = torch.ones(128, 64)
    with pytest.raises(ModelLoadError, match=r"'blocks\.1\.att\.key\.weight' has the shape"):
        Checkpoint.of(tensors, PATH)


def test_a_variant_that_would_run_wrongly_is_refused() -> None:
    tensors = random_checkpoint(7) | {"blocks.0.att.qq.weight": torch.ones(128, 128)}
    with pytest.raises(ModelLoadError, match=r"'blocks\.0\.att\.qq\.weight', which no RWKV"):
        Checkpoint.of(tensors, PATH)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_an_unsupported_dtype_is_named(dtype: torch.dtype) -> None:
    tensors = random_checkpoint(7)
    tensors["head.weight"] = tensors["head.weight"].to(dtype)
    with pytest.raises(ModelLoadError, match=f"'head.weight' in {dtype}: weights must be in"):
        Checkpoint.of(tensors, PATH)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "Hugging Face"),
        ("rwkv.blocks.0.attention.key.weight", "Hugging Face"),
        ("conv1.weight", r"should hold 'emb\.weight', 'head\.weight'"),
    ],
)
def test_another_kind_of_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"is not an RWKV checkpoint .*{message}"):
        Checkpoint.of({name: torch.ones(2, 2)}, PATH)


def test_both_formats_of_one_model_have_one_fingerprint(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / name, 6) for name in ("m.pth", "m.safetensors")]
    first, second = (Checkpoint.of(read_tensors(path), path).weights for path in paths)
    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"emb.weight": t["emb.weight"] + 1},
        lambda t: t | {"emb.weight": t["emb.weight"].half()},
        lambda t: t | {"blocks.1.ffn.x_k": t["blocks.1.ffn.x_k"].flip(-1)},
        lambda t: random_checkpoint(7, seed=1),
        lambda t: random_checkpoint(7, head_size=32),
    ],
)
def test_other_weights_have_another_fingerprint(change: object) -> None:
    assert callable(change)
    tensors = random_checkpoint(7)
    assert Checkpoint.of(tensors, PATH).weights != Checkpoint.of(change(tensors), PATH).weights


def test_the_fingerprint_reads_little_of_a_large_tensor() -> None:
    tensors = random_checkpoint(7, vocab=3000)
    before = Checkpoint.of(tensors, PATH).weights
    tensors["emb.weight"].view(-1)[5000] += 1  # between two samples
    assert Checkpoint.of(tensors, PATH).weights == before
    tensors["emb.weight"].view(-1)[-1] += 1
    assert Checkpoint.of(tensors, PATH).weights != before


def test_what_tells_the_version_comes_first() -> None:
    names = list(in_loading_order(random_checkpoint(6)))
    assert names.index("blocks.1.att.ln_x.weight") < names.index("blocks.0.att.time_decay")
    assert names.index("blocks.0.att.time_maa_x") < names.index("blocks.0.att.time_faaaa")
