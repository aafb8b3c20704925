"""What `inspect` says: of good states, broken ones, empty ones, and of sizes it has not seen."""

from __future__ import annotations

import math

import pytest
import torch

from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state import (
    Healthy,
    RWKVState,
    StateLayout,
    calibrate,
    decay,
    inspect,
    zero_state,
)
from langchain_rwkv_state.toolbox.diagnostics import effective_ranks
from tests.helpers.states import random_state
from tests.unit_tests.state.conftest import LAYOUTS


def changed(state, name, change):
    tensors = {each: state[each] for each in state}
    change(tensors[name])
    return RWKVState(state.layout, tensors, state.derivation)


@pytest.mark.parametrize("version", LAYOUTS)
def test_figures_are_those_of_the_tensors(version):
    state = random_state([1], layout=LAYOUTS[version])
    found = inspect(state)
    assert [each.name for each in found.tensors] == list(state)
    for each in found.tensors:
        x = state[each.name].double()
        assert each.mean_abs == pytest.approx(float(x.abs().mean()))
        assert each.max_abs == pytest.approx(float(x.abs().max()))
        assert each.rms == pytest.approx(float((x**2).mean().sqrt()))
        limits, filled = torch.finfo(state[each.name].dtype), x.abs()[x != 0]
        used = (filled.max() / filled.min()).log2() / math.log2(limits.max / limits.tiny)
        assert each.range_used == pytest.approx(float(used))
        assert len(each.ranks) == (state.layout.n_head if each.name.endswith("att_kv") else 0)
    assert found.sound
    assert found.verdict.startswith("Finite")


@pytest.mark.parametrize("version", LAYOUTS)
def test_nothing_read_is_empty(version):
    found = inspect(zero_state(LAYOUTS[version], "model"))
    assert found.sound
    assert found.verdict.startswith("Empty")


@pytest.mark.parametrize("version", LAYOUTS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_single_wrong_number_is_found_and_named(version, wrong):
    state = random_state([1], layout=LAYOUTS[version])
    for name in state:
        found = inspect(changed(state, name, lambda t: t.view(-1)[5:6].fill_(wrong)))
        assert not found.sound
        assert found.verdict.startswith(f"Broken: {name} holds")
        (each,) = (each for each in found.tensors if each.name == name)
        assert (each.n_nan, each.n_inf) == ((1, 0) if math.isnan(wrong) else (0, 1))
        assert math.isfinite(each.rms)


def test_effective_rank_counts_directions():
    size = 8
    one = torch.outer(torch.arange(1.0, 9), torch.arange(2.0, 10))
    half = torch.diag(torch.tensor([3.0] * 4 + [0.0] * 4))
    ranks = effective_ranks(torch.stack([one, half, torch.eye(size), torch.zeros(size, size)]))
    assert ranks == pytest.approx((1, 4, 8, 0), abs=1e-6)


def test_one_token_gives_rank_one(models):
    for version in (5.2, 6, 7):
        runtime = models[version]
        _, state = runtime.forward([7], runtime.zero_state())
        for each in inspect(state).tensors:
            assert each.ranks == pytest.approx([1.0] * len(each.ranks), abs=1e-3)


def test_sizes_are_judged_by_the_models_own_states(runtime, read):
    seen = [read([n, n + 1, n + 2, n * 3 % 288]) for n in range(6)]
    healthy = calibrate(seen)
    assert inspect(seen[0], healthy=healthy).verdict.startswith("Sound: all sizes are those of 6")
    name = next(each for each in seen[0] if "x_prev" not in each)
    large = changed(seen[0], name, lambda t: t.mul_(50))
    found = inspect(large, healthy=healthy)
    assert found.verdict.startswith("Unusual: 1 of")
    assert name in found.problems[0]
    assert Healthy.from_json(healthy.to_json()) == healthy


def test_decay_becomes_unusual_in_the_end():
    states = [random_state([n], layout=LAYOUTS[7]) for n in range(4)]
    healthy = calibrate(states)
    assert inspect(decay(states[0], 0.9), healthy=healthy).sound
    assert not inspect(decay(states[0], 0.1), healthy=healthy).sound


def test_calibration_needs_states_of_one_model_that_are_whole():
    a = random_state([1], layout=LAYOUTS[7])
    other = random_state([1], layout=LAYOUTS[7], fingerprint="other")
    with pytest.raises(ValueError, match="two states"):
        calibrate([a])
    with pytest.raises(ValueError, match="margin"):
        calibrate([a, a], margin=0.5)
    with pytest.raises(StateMismatch, match="other"):
        calibrate([a, other])
    with pytest.raises(ValueError, match="not finite"):
        calibrate([a, changed(a, "blocks.0.att_kv", lambda t: t.fill_(math.nan))])
    with pytest.raises(StateMismatch, match="calibrate"):
        inspect(other, healthy=calibrate([a, a]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', "[" * 100_000])
def test_other_texts_are_no_ranges(text):
    with pytest.raises(StateCorrupt):
        Healthy.from_json(text)


def test_the_range_in_use_is_counted_in_powers_of_two():
    layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64, shift_dtype="fp16")

    def used(*numbers: float) -> float:
        def fill(tensor: torch.Tensor) -> None:
            tensor.zero_()
            tensor[: len(numbers)] = torch.tensor(numbers)

        state = changed(random_state([1], layout=layout), "blocks.0.att_x_prev", fill)
        return inspect(state).tensors[0].range_used

    assert used() == used(-3.0) == used(0.5, 0.5) == 0
    assert used(1.0, -32.0) == pytest.approx(5 / 30, rel=1e-3)
    assert used(2.0**-14, 65504.0) == pytest.approx(1)
    assert used(2.0**-24, 65504.0) == 1  # below fp16's normal numbers
