"""The readable formulas against the `rwkv` package: the oracle, and what it is the oracle of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.runtime import load_runtime, open_slots
from langchain_rwkv_state.toolbox.reference import ReferenceModel
from tests.helpers.checkpoints import VERSIONS, random_checkpoint, write_checkpoint

SIZES: dict[str, Any] = {"n_layer": 3, "n_embd": 64, "head_size": 32}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The formulas and the package over the same weights; for RWKV-7 also the native runtime."""
    folder, made = tmp_path_factory.mktemp("reference"), []
    for version, tuned in (*((v, False) for v in VERSIONS), (5.2, True), (6, True)):
        weights = random_checkpoint(version, tuned_state=tuned, **SIZES)
        path = write_checkpoint(folder / f"{version}-{tuned}.pth", tensors=weights)
        strategies = ["package cpu fp32", "native cpu fp32"] if version == 7 else ["cpu fp32"]
        runtimes = [load_runtime(path, strategy) for strategy in strategies]
        made += [(ReferenceModel(weights), runtime) for runtime in runtimes]
    yield made
    for _, runtime in made:
        runtime.close()


@given(tokens=st.lists(st.integers(0, 287), min_size=1, max_size=12))
def test_logits_and_states_are_those_of_the_runtimes(pairs, tokens):
    for model, runtime in pairs:
        zero = runtime.zero_state()
        state = {name: zero[name] for name in zero}
        for token in tokens:
            logits, state = model.step(token, state)
        expected, read = runtime.forward(tokens, zero)
        assert torch.allclose(logits, expected, atol=2e-5, rtol=1e-5), model.version
        assert set(state) == set(read)
        for name in read:
            assert torch.allclose(state[name], read[name], atol=2e-5, rtol=2e-5), name


@pytest.mark.slow
@given(
    texts=st.lists(st.lists(st.integers(0, 287), min_size=1, max_size=20), min_size=2, max_size=4)
)
def test_slots_and_batches_are_those_of_the_formulas(pairs, texts):
    """Conversations of different lengths side by side, read in two goes."""
    for model, runtime in pairs:
        expected = []
        for text in texts:
            state = model.zero_tensors()
            for token in [*text, 7]:
                logits, state = model.step(token, state)
            expected.append((logits, state))
        slots = open_slots(runtime, len(texts))
        for number in range(len(texts)):
            slots.put(number, runtime.zero_state())
        slots.read(list(enumerate(texts)))
        found = slots.read([(number, [7]) for number in range(len(texts))])
        for number, (logits, state) in enumerate(expected):
            assert torch.allclose(found[number], logits, atol=5e-5, rtol=1e-4), model.version
            read = slots.get(number)
            for name in read:
                assert torch.allclose(read[name], state[name], atol=5e-5, rtol=1e-4), name


def test_a_step_leaves_the_state_it_was_handed(pairs):
    for model, runtime in pairs:
        _, read = runtime.forward([5, 6], runtime.zero_state())
        state = {name: read[name] for name in read}
        model.step(7, state)
        assert all(torch.equal(state[name], read[name]) for name in read)


def test_the_first_state_is_that_of_the_runtimes_a_tuned_one_too(pairs):
    for model, runtime in pairs:
        zero, found = runtime.zero_state(), model.zero_tensors()
        assert all(torch.equal(found[name], zero[name]) for name in zero)
        assert set(found) == set(zero)


def test_tensors_of_no_version_are_refused():
    weights = random_checkpoint(7, **SIZES)
    with pytest.raises(ValueError, match="RWKV-4, 5, 6 or 7"):
        ReferenceModel({n: t for n, t in weights.items() if not n.endswith("r_k")})


def test_a_key_of_rwkv_4_counts_as_its_exponential(pairs):
    """The common recipe adds `k` where the model adds ``exp(k)``: a weight could be negative."""
    model, runtime = pairs[0]
    assert model.version == 4
    zero = runtime.zero_state()
    _, state = model.step(7, {name: zero[name] for name in zero})
    aa, bb, pp = (state[f"blocks.0.att_{each}"] for each in ("aa", "bb", "pp"))
    # After one token the denominator is exp(k), which is positive; the recipe's is k, which is not.
    key = pp + bb.log()
    assert (key < 0).any()
    assert torch.isfinite(aa / bb).all()
