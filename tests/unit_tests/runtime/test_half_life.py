"""Half-lives: what the weights say for RWKV-4 and 5, what the text says for 6 and 7."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.demo import MODEL_PATH, TOKENIZER_PATH
from langchain_rwkv_state.demo.sample import SAMPLE_IDS, SAMPLE_TEXT
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime import half_life, load_runtime
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.tokenizer import load_tokenizer
from langchain_rwkv_state.toolbox.half_life import static_half_life
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint

SIZES: dict[str, Any] = {"n_embd": 64, "head_size": 32}


@pytest.fixture
def model(tmp_path):
    def write(version, **changes):
        weights = random_checkpoint(version, **SIZES) | changes
        return write_checkpoint(tmp_path / f"{version}.pth", tensors=weights)

    return write


@pytest.mark.parametrize(("version", "shape"), [(4, (64,)), (5.2, (2, 32))])
def test_fixed_decays_are_read_off_the_weights(model, version, shape):
    decay = torch.linspace(-8, 1, 64).reshape(shape)
    found = half_life(model(version, **{"blocks.1.att.time_decay": decay}))
    assert len(found.layers) == 2
    assert found.layers[1][0] == pytest.approx(math.log(2) / math.exp(-8))  # some 2,066 tokens
    # 0.5 == w ** half_life
    kept = torch.exp(-torch.exp(decay.double())).flatten() ** found.layers[1]
    assert kept.tolist() == pytest.approx([0.5] * 64)
    assert (found.version, found.measured, found.n_tokens) == (str(version), False, 0)


@pytest.mark.parametrize("version", [5.0, 5.1])
def test_a_head_with_one_decay_has_one_half_life(model, version):
    found = half_life(model(version, **{"blocks.0.att.time_decay": torch.tensor([-3.0, -1.0])}))
    spans = [math.log(2) / math.exp(rate) for rate in (-3, -1)]
    assert found.medians[0].tolist() == pytest.approx(spans)
    assert found.layers[0].tolist() == pytest.approx([spans[0]] * 32 + [spans[1]] * 32)
    assert found.version == {5.0: "5", 5.1: "5.1"}[version]


@pytest.mark.parametrize("version", [4, 5.0, 5.1, 5.2])
def test_the_package_itself_halves_a_write_in_that_time(model, version):
    """Decays of the whole state are read off the `rwkv` package's own loaded weights."""
    path = model(version)
    runtime = load_runtime(path, "cpu fp32")
    kept = runtime._model._model.w["blocks.1.att.time_decay"].double()  # type: ignore[attr-defined]
    runtime.close()
    if version == 4:
        kept = kept.exp()  # the package keeps w = -exp(time_decay) there
    found = half_life(path).layers[1].reshape(*kept.shape[:2], -1)[..., :1].reshape(kept.shape)
    assert (kept**found).flatten().tolist() == pytest.approx([0.5] * kept.numel(), rel=1e-5)


def test_static_half_lives_need_no_text_and_ignore_one(model):
    for version in (4, 5.0, 5.2):
        path = model(version)
        assert torch.equal(half_life(path).layers[0], half_life(path, [7, 8]).layers[0])
        assert half_life(path, [7, 8]).n_tokens == 0


@pytest.mark.parametrize("version", [6, 7])
def test_decays_of_later_versions_depend_on_the_text(model, version):
    path = model(version)
    one, other = half_life(path, [1, 2, 3]), half_life(path, [9, 8, 7, 6])
    assert [each.shape for each in one.layers] == [(64,), (64,)]
    assert [each.shape for each in one.medians] == [(2,), (2,)]
    assert not torch.allclose(one.layers[1], other.layers[1])
    assert all(each.gt(0).all() for each in (*one.layers, *other.layers))
    assert (one.measured, one.n_tokens, other.n_tokens) == (True, 3, 4)
    if version == 7:
        assert min(float(each.min()) for each in one.layers) >= math.log(2) / 0.606531 - 1e-6


def test_medians_of_rwkv_4_are_those_of_64_channels(tmp_path):
    weights = random_checkpoint(4, n_embd=160, head_size=32)
    found = half_life(write_checkpoint(tmp_path / "m.pth", tensors=weights))
    groups = found.layers[0].split(64)
    assert [len(group) for group in groups] == [64, 64, 32]
    halves = [
        (float((g <= m).double().mean()), float((g >= m).double().mean()))
        for g, m in zip(groups, found.medians[0], strict=True)
    ]
    assert halves == [(0.5, 0.5)] * 3


def test_the_demo_model_brings_a_text_and_says_so():
    found = half_life("demo")
    assert found.text == SAMPLE_TEXT
    assert found.n_tokens == len(SAMPLE_IDS)
    assert "built-in conversation" in found.source
    tokenizer = load_tokenizer(TOKENIZER_PATH, model_path=MODEL_PATH, vocab_size=667)
    assert tokenizer.encode(SAMPLE_TEXT) == list(SAMPLE_IDS)
    own = half_life("demo", SAMPLE_IDS)
    assert own.text == ""
    assert torch.equal(own.layers[3], found.layers[3])


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("tokens", [None, []])
def test_a_model_whose_decay_comes_from_the_text_asks_for_one(model, version, tokens):
    with pytest.raises(ValueError, match=f"RWKV-{version} .* tokens="):
        half_life(model(version), tokens)


def test_what_cannot_be_measured_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="Token 288 is not in the model's vocabulary of 288"):
        half_life(model(6), [1, 288])
    with pytest.raises(ValueError, match="Token -1"):
        half_life(model(7), [-1])
    with pytest.raises(ModelLoadError, match="no file"):
        half_life(tmp_path / "none.pth")


@given(shift=st.floats(-3, 3), seed=st.integers(0, 9))
def test_twice_the_rate_is_half_the_half_life(shift, seed):
    weights = random_checkpoint(4, seed=seed, **SIZES)
    decays = {n: t.double() for n, t in weights.items() if n.endswith("time_decay")}
    checkpoint = Checkpoint.of(weights, MODEL_PATH)
    before = static_half_life(decays, checkpoint)
    after = static_half_life({n: t + shift for n, t in decays.items()}, checkpoint)
    for one, other in zip(before.layers, after.layers, strict=True):
        assert torch.allclose(other, one / math.exp(shift), rtol=1e-12)
