"""Clamped decays: a named change of a model of its own, beside the plain one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.errors import ModelLoadError, StateMismatch
from langchain_rwkv_state.runtime import (
    DecayClamp,
    clamp_decay,
    half_life,
    load_runtime,
    write_clamped,
)
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors
from langchain_rwkv_state.runtime.registry import MODELS
from langchain_rwkv_state.state import Fingerprint
from langchain_rwkv_state.toolbox.half_life import static_half_life
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint, write_tokenizer

SIZES: dict[str, Any] = {"n_embd": 64, "head_size": 32}
STATIC = (4, 5.0, 5.1, 5.2)
BOUNDS = st.tuples(st.floats(-9, 2), st.floats(-9, 2)).map(sorted)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clamp")
    return {v: write_checkpoint(folder / f"{v}.pth", v, **SIZES) for v in (*STATIC, 6, 7)}


def weights_of(runtime):
    return Fingerprint.parse(runtime.fingerprint).weights


def held(model):
    """Returns the `rwkv` package's own weights behind a runtime."""
    return model._model._model.w


@pytest.mark.parametrize("version", STATIC)
def test_a_clamped_model_computes_with_clamped_decays(models, version):
    clamped, plain = clamp_decay(models[version], -3, -1), load_runtime(models[version])
    tensors = read_tensors(models[version])
    for name in (n for n in tensors if n.endswith("time_decay")):
        rate = tensors[name].clamp(-3, -1).exp()
        expected = -rate if version == 4 else (-rate).exp()
        assert torch.allclose(held(clamped)[name].flatten(), expected.flatten())
    logits, _ = clamped.forward([1, 2, 3], clamped.zero_state())
    before, _ = plain.forward([1, 2, 3], plain.zero_state())
    assert not torch.allclose(logits, before)
    clamped.close()
    plain.close()


def test_whoever_holds_the_plain_model_keeps_it(models):
    plain = load_runtime(models[4])
    logits, _ = plain.forward([5, 6, 7], plain.zero_state())
    first, second = (clamp_decay(models[4], -2, -1) for _ in range(2))
    other = clamp_decay(models[4], -2, 0)
    assert len({id(r._model) for r in (plain, first, second, other)}) == 3  # type: ignore[attr-defined]
    assert torch.equal(plain.forward([5, 6, 7], plain.zero_state())[0], logits)
    count = len(MODELS)
    for runtime in (plain, first, second, other):
        runtime.close()
    assert len(MODELS) == count - 3


@pytest.mark.parametrize("version", STATIC)
def test_the_fingerprint_names_the_clamp(models, version):
    plain, clamped = load_runtime(models[version]), clamp_decay(models[version], -3, -1)
    assert weights_of(clamped).endswith("+clamp(-3,-1)")
    assert weights_of(clamped).partition("+")[0] != weights_of(plain)
    _, state = clamped.forward([1], clamped.zero_state())
    with pytest.raises(StateMismatch, match="another weights"):
        plain.forward([2], state)
    plain.close()
    clamped.close()


@given(bounds=BOUNDS)
def test_the_fingerprint_is_another_exactly_where_a_number_is(models, bounds):
    tensors = read_tensors(models[4])
    decays = torch.cat([t.flatten() for n, t in tensors.items() if n.endswith("time_decay")])
    changes = bool(((decays < bounds[0]) | (decays > bounds[1])).any())
    plain, clamped = load_runtime(models[4]), clamp_decay(models[4], *bounds)
    assert (plain.fingerprint != clamped.fingerprint) == changes
    plain.close()
    clamped.close()


@given(
    bounds=BOUNDS, version=st.sampled_from(STATIC), dtype=st.sampled_from(("float32", "bfloat16"))
)
def test_a_clamp_bounds_half_lives_and_a_second_one_changes_nothing(bounds, version, dtype):
    weights = random_checkpoint(version, dtype=getattr(torch, dtype), **SIZES)
    checkpoint = Checkpoint.of(weights, "m.pth")  # type: ignore[arg-type]
    clamp = DecayClamp(*bounds)
    clamped = weights | clamp.of(weights, checkpoint)
    assert clamp.of(clamped, checkpoint) == {}
    assert all(clamped[name].dtype == weights[name].dtype for name in weights)
    found = torch.cat(static_half_life(clamped, checkpoint).layers)
    room = 1.02 if dtype == "float32" else 1.1  # a bound is rounded to the tensor's dtype
    assert float(found.max()) <= math.log(2) / math.exp(bounds[0]) * room
    assert float(found.min()) >= math.log(2) / math.exp(bounds[1]) / room
    before = torch.cat(static_half_life(weights, checkpoint).layers)
    inside = (before < found.max()) & (before > found.min())
    assert torch.equal(found[inside], before[inside])


def test_one_number_in_a_wide_layer_makes_another_model(tmp_path):
    """Samples of a wide tensor could miss it, and two models would pass for one."""
    decay = torch.full((6000,), -3.0)
    decay[2100] = 1.0
    wide = random_checkpoint(4, n_layer=1, **SIZES)
    digests = set()
    for number in (1.0, 0.5):
        decay[2100] = number
        tensors = wide | {"blocks.0.att.time_decay": decay.clone()}
        tensors |= {"blocks.0.att.time_first": torch.zeros(6000)}
        tensors |= {
            f"blocks.0.att.{n}.weight": torch.zeros(6000, 64)
            for n in ("key", "value", "receptance")
        }
        tensors |= {"blocks.0.att.output.weight": torch.zeros(64, 6000)}
        digests.add(Checkpoint.of(tensors, tmp_path).weights)
    assert len(digests) == 2


def test_a_written_model_is_the_clamped_one_for_every_api(models, tmp_path):
    path = write_clamped(models[4], tmp_path / "clamped.safetensors", -3, -1)
    assert path == tmp_path / "clamped.safetensors"
    clamped, written = clamp_decay(models[4], -3, -1), load_runtime(path)
    one, other = (r.forward([4, 5, 6], r.zero_state())[0] for r in (clamped, written))
    assert torch.equal(one, other)
    assert weights_of(written) == weights_of(clamped).partition("+")[0]
    assert float(torch.cat(half_life(path).layers).max()) <= math.log(2) / math.exp(-3) * 1.001
    clamped.close()
    written.close()
    assert [each.name for each in tmp_path.iterdir()] == ["clamped.safetensors"]
    write_tokenizer(tmp_path / "tokenizer.json")
    chat = ChatRWKV(model=str(path), store=MemoryStateStore(), prefix_cache=False)
    assert weights_of(chat.loaded().runtime) == weights_of(written)
    assert chat.invoke("Hello", max_tokens=2).response_metadata["rwkv_state"]
    chat.unload()


def test_a_file_that_is_there_stays(models, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is there already"):
        write_clamped(models[4], path)
    assert path.read_bytes() == b"mine"
    with pytest.raises(ValueError, match="safetensors"):
        write_clamped(models[4], tmp_path / "mine.pth")
    assert [each.name for each in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_file_that_comes_while_one_is_written_stays_too(models, tmp_path, monkeypatch):
    path, save = tmp_path / "out.safetensors", safetensors.torch.save

    def slowly(tensors):
        path.write_bytes(b"theirs")
        return save(tensors)

    monkeypatch.setattr(safetensors.torch, "save", slowly)
    with pytest.raises(FileExistsError, match="is there already"):
        write_clamped(models[4], path)
    assert path.read_bytes() == b"theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["out.safetensors"]


def test_weights_that_share_storage_are_written_apart(tmp_path):
    tensors = random_checkpoint(4, **SIZES)
    tensors["head.weight"] = tensors["emb.weight"]
    model = write_checkpoint(tmp_path / "tied.pth", tensors=tensors)
    written = read_tensors(write_clamped(model, tmp_path / "out.safetensors", -20, 20))
    assert set(written) == set(tensors)
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(("version", "why"), [(6, "the text adds"), (7, "comes from the text")])
def test_models_whose_decay_comes_from_the_text_are_refused(models, tmp_path, version, why):
    count = len(MODELS)
    with pytest.raises(ValueError, match=why):
        clamp_decay(models[version])
    with pytest.raises(ValueError, match=why):
        write_clamped(models[version], tmp_path / "out.safetensors")
    assert len(MODELS) == count
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bounds", [(-0.1, -8), (math.nan, 0), (-math.inf, 0)])
def test_bounds_are_two_numbers_in_order(models, bounds):
    with pytest.raises(ValueError, match="lower one first"):
        clamp_decay(models[4], *bounds)


def test_a_model_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ModelLoadError, match="no file"):
        clamp_decay(tmp_path / "none.pth")


def test_a_clamp_that_changes_nothing_shares_the_plain_models_weights(tiny_model):
    plain = load_runtime(tiny_model(4), "cpu fp32")
    held = len(MODELS)
    clamped = clamp_decay(tiny_model(4), -1e9, 1e9, strategy="cpu fp32")
    assert clamped.fingerprint == plain.fingerprint
    assert len(MODELS) == held
    for each in (plain, clamped):
        each.close()
