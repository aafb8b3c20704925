"""Half-lives: what the weights say for RWKV-4 and 5, what the text says for 6 and 7."""

from __future__ import annotations

import math

import pytest
import torch

from langchain_rwkv_state.runtime.half_life import half_lives
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint


@pytest.fixture
def model(tmp_path):
    def write(version, **changes):
        weights = random_checkpoint(version, n_embd=64, head_size=32) | changes
        return write_checkpoint(tmp_path / f"{version}.pth", tensors=weights)

    return write


@pytest.mark.parametrize(("version", "shape"), [(4, (64,)), (5.2, (2, 32))])
def test_fixed_decays_are_read_off_the_weights(model, version, shape):
    decay = torch.linspace(-8, 1, 64).reshape(shape)
    path = model(version, **{"blocks.1.att.time_decay": decay})
    found = half_lives(path)
    assert len(found) == 2
    assert found[1][0] == pytest.approx(math.log(2) / math.exp(-8), rel=1e-3)  # some 2,066 tokens
    # 0.5 == w ** half_life
    kept = torch.exp(-torch.exp(decay.double())).flatten() ** found[1]
    assert kept.tolist() == pytest.approx([0.5] * 64, rel=1e-3)
    assert torch.allclose(half_lives(path, tokens=[7, 8, 9])[1], found[1], rtol=1e-9)


@pytest.mark.parametrize("version", [6, 7])
def test_decays_of_later_versions_depend_on_the_text(model, version):
    path = model(version)
    one, other = half_lives(path, [1, 2, 3]), half_lives(path, [9, 8, 7, 6])
    assert [each.shape for each in one] == [(64,), (64,)]
    assert not torch.allclose(one[1], other[1])
    assert all(each.gt(0).all() for each in (*one, *other))
    if version == 7:
        assert min(float(each.min()) for each in one) >= math.log(2) / 0.606531 - 1e-6


def test_what_cannot_be_measured_is_refused(model):
    with pytest.raises(ValueError, match="tokens"):
        half_lives(model(4), [])
    with pytest.raises(ValueError, match=r"5\.2"):
        half_lives(model(5.0))


def test_the_reference_starts_from_the_runtimes_zero_state(models_of_all_versions):
    for reference, runtime in models_of_all_versions:
        zero, found = runtime.zero_state(), reference.zero_tensors()
        assert {n: t.shape for n, t in found.items()} == {n: zero[n].shape for n in zero}
        assert all(torch.equal(found[name], zero[name]) for name in zero)


@pytest.fixture
def models_of_all_versions(load):
    from langchain_rwkv_state.runtime.reference import ReferenceModel

    sizes = {"n_layer": 2, "n_embd": 64, "head_size": 32}
    return [
        (ReferenceModel(random_checkpoint(version, **sizes)), load(version, **sizes))  # type: ignore[arg-type]
        for version in (4, 5.2, 6, 7)
    ]
