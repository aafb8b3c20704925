"""Heat maps' numbers against plain loops, for every version; and how a state moves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.state import (
    RWKVState,
    StateLayout,
    difference_map,
    distance,
    head_maps,
    inspect,
    motion,
    renormalise,
    zero_state,
)
from langchain_rwkv_state.toolbox.diagnostics import effective_ranks
from tests.helpers.states import random_state
from tests.unit_tests.state.conftest import LAYOUTS

NARROW_4 = StateLayout.of(4, n_layer=2, n_embd=96)  # its second block has 32 channels


def changed(state, name, change):
    tensors = {each: state[each] for each in state}
    change(tensors[name])
    return RWKVState(state.layout, tensors, state.derivation)


def filled(state):
    """Returns an RWKV-4 state whose denominators are positive, as those of a model are."""
    for n in range(state.layout.n_layer):
        state = changed(state, f"blocks.{n}.att_bb", lambda t: t.abs_().add_(0.1))
    return state


def meant_4(state, n):
    """Returns per channel what RWKV-4's accumulators mean, one by one."""
    aa, bb, pp = (state[f"blocks.{n}.att_{x}"].double().tolist() for x in ("aa", "bb", "pp"))
    pairs = []
    for a, b, p in zip(aa, bb, pp, strict=True):
        pairs.append((a / b, math.log1p(b * math.exp(p))) if b > 0 else (a, 0.0))
    return pairs


def rms(numbers):
    return math.sqrt(sum(x * x for x in numbers) / len(numbers))


def apart(one, other):
    gap = sum((x - y) ** 2 for x, y in zip(one, other, strict=True))
    whole = sum(x * x for x in one) + sum(y * y for y in other)
    return math.sqrt(gap / (whole / 2)) if gap else 0.0


@pytest.mark.parametrize("version", [5, 6, 7])
def test_norms_and_ranks_are_those_of_each_heads_matrix(version):
    state = random_state([1], layout=LAYOUTS[version])
    norm, rank = head_maps(state)
    assert (norm.name, rank.name) == ("norm", "rank")
    assert norm.shape == rank.shape == (2, 2)
    assert norm.columns == "head"
    for n in range(2):
        for h in range(2):
            matrix = state[f"blocks.{n}.att_kv"][h]
            assert norm.values[n][h] == pytest.approx(rms(matrix.double().flatten().tolist()))
            assert rank.values[n][h] == pytest.approx(effective_ranks(matrix[None])[0])


@pytest.mark.parametrize("layout", [LAYOUTS[4], NARROW_4], ids=["64", "96"])
def test_rwkv_4_has_blocks_of_channels_of_what_its_accumulators_mean(layout):
    state = filled(random_state([1], layout=layout))
    mean, mass = head_maps(state)
    assert (mean.name, mass.name) == ("mean", "mass")
    assert mean.shape == mass.shape == (2, math.ceil(layout.n_embd / 64))
    assert mean.columns == "block of 64 channels"
    for n in range(2):
        pairs = meant_4(state, n)
        for at, (one, other) in enumerate(zip(mean.values[n], mass.values[n], strict=True)):
            block = pairs[64 * at : 64 * (at + 1)]
            assert one == pytest.approx(rms([x for x, _ in block]))
            assert other == pytest.approx(sum(y for _, y in block) / len(block))


@pytest.mark.parametrize("version", [5, 6, 7])
def test_difference_is_that_of_each_heads_matrix(version):
    a, b = (random_state([n], layout=LAYOUTS[version]) for n in (1, 2))
    found = difference_map(a, b)
    for n in range(2):
        for h in range(2):
            one, other = (x[f"blocks.{n}.att_kv"][h].double().flatten().tolist() for x in (a, b))
            assert found.values[n][h] == pytest.approx(apart(one, other))


@pytest.mark.parametrize("layout", [LAYOUTS[4], NARROW_4], ids=["64", "96"])
def test_difference_of_rwkv_4_counts_means_and_masses(layout):
    a, b = (filled(random_state([n], layout=layout)) for n in (1, 2))
    found = difference_map(a, b)
    for n in range(2):
        one, other = meant_4(a, n), meant_4(b, n)
        for at, cell in enumerate(found.values[n]):
            blocks = (x[64 * at : 64 * (at + 1)] for x in (one, other))
            flat = ([m for m, _ in x] + [w for _, w in x] for x in blocks)
            assert cell == pytest.approx(apart(*flat))


@pytest.mark.parametrize("version", LAYOUTS)
@given(tokens=st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_a_state_is_at_0_from_itself_and_differences_are_even_handed(version, tokens):
    a, b = (random_state(x, layout=LAYOUTS[version]) for x in (tokens, [*tokens, 1]))
    assert set(difference_map(a, a).finite) == {0.0}
    assert difference_map(a, b) == difference_map(b, a)
    assert all(0 <= x <= 2 for x in difference_map(a, b).finite)


def test_rwkv_4_renormalised_looks_the_same(models):
    runtime = models[4]
    _, state = runtime.forward([1, 2, 3], runtime.zero_state())
    for one, other in zip(head_maps(state), head_maps(renormalise(state)), strict=True):
        assert one.finite == pytest.approx(other.finite, rel=1e-4)
    assert max(difference_map(state, renormalise(state)).finite) < 1e-4


@pytest.mark.parametrize("version", LAYOUTS)
def test_nothing_read_is_0_everywhere(version):
    zero = zero_state(LAYOUTS[version], "model")
    for each in (*head_maps(zero), difference_map(zero, zero)):
        assert set(each.finite) == {0.0}


@pytest.mark.parametrize("version", LAYOUTS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_head_that_is_not_finite_is_nan_and_hides_no_other(version, wrong):
    kind = "att_aa" if version == 4 else "att_kv"
    whole = random_state([1], layout=LAYOUTS[version])
    state = changed(whole, f"blocks.1.{kind}", lambda t: t.view(-1)[:1].fill_(wrong))
    found = [head_maps(state)[0], difference_map(whole, state)]
    found += [] if version == 4 else [head_maps(state)[1]]
    for each in found:
        assert math.isnan(each.values[1][0])
        layers, heads = each.shape
        assert len(each.finite) == layers * heads - 1


def test_states_of_two_models_have_no_difference():
    with pytest.raises(StateMismatch):
        difference_map(random_state([1]), random_state([1], fingerprint="another"))


@pytest.mark.parametrize("version", LAYOUTS)
def test_motion_is_size_rank_and_distance_by_layer(version):
    a, b = (random_state([n], layout=LAYOUTS[version]) for n in (1, 2))
    found = motion(b, a, inspect(b))
    far = distance(b, a, "rms_relative")
    assert [each.moved for each in found.layers] == list(far.layers)
    assert found.moved == far.total
    assert found.verdict == inspect(b).verdict
    maps = head_maps(b)
    assert [each.rms for each in found.layers] == pytest.approx(list(map(rms, maps[0].values)))
    if version == 4:
        assert found.rank is None
    else:
        ranks = [sum(row) / len(row) for row in maps[1].values]
        assert [each.rank for each in found.layers] == pytest.approx(ranks)
        assert found.rank == pytest.approx(sum(ranks) / len(ranks))


def test_motion_needs_a_state_of_the_same_model_to_compare_with():
    state = random_state([1])
    for before in (None, random_state([2], fingerprint="another")):
        found = motion(state, before, inspect(state))
        assert found.moved is None
        assert all(each.moved is None for each in found.layers)


def test_a_layer_with_a_broken_head_has_no_rank_and_is_still_shown():
    state = changed(random_state([1]), "blocks.0.att_kv", lambda t: t.view(-1)[:1].fill_(math.nan))
    found = motion(state, random_state([2]), inspect(state))
    assert found.layers[0].rank is None
    assert math.isnan(found.layers[0].rms)
    assert torch.isfinite(torch.tensor(found.layers[1].rms))
    assert found.verdict.startswith("Broken")
