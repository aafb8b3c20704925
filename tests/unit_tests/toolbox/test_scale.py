"""Whether a state needs another scale, and why not."""

from __future__ import annotations

import math

import pytest
import torch

from langchain_rwkv_state.state import RWKVState, check_scale, renormalise, zero_state
from tests.helpers.states import random_state
from tests.unit_tests.conftest import LAYOUTS


@pytest.mark.parametrize("version", [5, 6, 7])
def test_matrix_states_need_none_and_are_told_why(version):
    state = random_state([1], layout=LAYOUTS[version])
    found = check_scale(state)
    largest = max(float(state[name].abs().max()) for name in state if name.endswith("att_kv"))
    assert not found.changes
    assert found.largest == pytest.approx(largest)
    assert found.powers_left == pytest.approx(128 - math.log2(largest))
    assert found.reason.startswith(f"An RWKV-{version} has no scale beside its matrices")
    assert f"{largest:.3g}" in found.reason


def test_rwkv_4_is_asked_what_renormalise_would_do(models):
    runtime = models[4]
    state = runtime.forward([1, 2, 3], runtime.zero_state())[1]
    assert check_scale(state).changes
    made = renormalise(state)
    assert not check_scale(made).changes
    assert "already" in check_scale(made).reason


def test_a_state_near_the_end_of_fp32_shows_it():
    state = random_state([1], layout=LAYOUTS[7])
    tensors = {name: state[name] for name in state}
    tensors["blocks.1.att_kv"][0, 0, 0] = 2.0**126
    found = check_scale(RWKVState(state.layout, tensors, state.derivation))
    assert found.powers_left == 2
    assert "can double 2 times" in found.reason


@pytest.mark.parametrize("version", LAYOUTS)
def test_an_empty_state_has_all_the_room(version):
    found = check_scale(zero_state(LAYOUTS[version], "model"))
    assert (found.changes, found.largest, found.powers_left) == (False, 0, math.inf)
    assert "All of them are zero" in found.reason


def test_nan_is_refused():
    state = random_state([1], layout=LAYOUTS[4])
    tensors = {name: state[name] for name in state}
    tensors["blocks.0.att_bb"] = torch.full_like(tensors["blocks.0.att_bb"], math.nan)
    with pytest.raises(ValueError, match="NaN"):
        check_scale(RWKVState(state.layout, tensors, state.derivation))
