"""The state algebra: laws that hold for every version, and what the common recipes get wrong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.state import (
    RWKVState,
    blend,
    blend_many,
    decay,
    distance,
    reference,
    renormalise,
    zero_state,
)
from langchain_rwkv_state.state.parts import chosen
from tests.helpers.states import random_state
from tests.unit_tests.conftest import LAYOUTS

KEY = bytes(32)
TOKENS = st.lists(st.integers(0, 287), min_size=1, max_size=12)
VERSIONS = st.sampled_from(sorted(LAYOUTS))
SHARES = st.floats(0.01, 0.99)


def a_state(version, tokens):
    """Returns a random state; RWKV-4's denominators are positive, as a model's are."""
    state = random_state(tokens, layout=LAYOUTS[version])
    if version != 4:
        return state
    tensors = {
        name: state[name].abs() + 0.1 if name.endswith("att_bb") else state[name] * 5
        for name in state
    }
    return RWKVState(state.layout, tensors, state.derivation)


def true_scale(state, layer=0):
    """Returns RWKV-4's numerator and denominator as they are meant, in fp64."""
    aa, bb, pp = (state[f"blocks.{layer}.att_{each}"].double() for each in ("aa", "bb", "pp"))
    return aa * pp.exp(), bb * pp.exp()


def logits(runtime, state, tokens=(3, 1, 4, 1, 5)):
    return runtime.forward(list(tokens), state)[0]


# -- blend ---------------------------------------------------------------------------------------


@given(VERSIONS, TOKENS, TOKENS)
def test_blend_at_one_and_zero_gives_the_ends(version, first, second):
    a, b = a_state(version, first), a_state(version, second)
    assert blend(a, b, 1) is a
    assert blend(a, b, 0) is b


@given(VERSIONS, TOKENS, SHARES)
def test_blend_of_a_state_with_itself_means_the_same(version, tokens, alpha):
    a = a_state(version, tokens)
    assert distance(blend(a, a, alpha), a, "rms_relative").total < 1e-2  # shifts of 16 bits
    assert (
        distance(blend(a, a, alpha), a).tensors["blocks.0." + ("wkv" if version == 4 else "att_kv")]
        < 1e-4
    )


@given(VERSIONS, TOKENS, TOKENS, SHARES)
def test_blend_lies_between_and_is_symmetric(version, first, second, alpha):
    a, b = a_state(version, first), a_state(version, second)
    mixed, turned = blend(a, b, alpha), blend(b, a, 1 - alpha)
    for name in mixed:
        assert torch.allclose(mixed[name], turned[name], atol=1e-5, rtol=1e-5)
    if version != 4:
        expected = alpha * a["blocks.0.att_kv"] + (1 - alpha) * b["blocks.0.att_kv"]
        assert torch.allclose(mixed["blocks.0.att_kv"], expected, atol=1e-6)
        return
    for got, one, other in zip(true_scale(mixed), true_scale(a), true_scale(b), strict=True):
        want = alpha * one + (1 - alpha) * other
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@given(VERSIONS, TOKENS, TOKENS, TOKENS)
def test_blend_of_many_is_blend_in_steps(version, first, second, third):
    a, b, c = (a_state(version, each) for each in (first, second, third))
    at_once = blend_many([a, b, c], [0.5, 0.25, 0.25])
    in_steps = blend(a, blend(b, c, 0.5), 0.5)
    assert distance(at_once, in_steps, "rms_relative").total < 1e-2


def test_the_zero_state_has_no_weight_in_a_blend_of_rwkv_4():
    """A past of weight nothing halves numerator and denominator alike: their ratio stays."""
    a, zero = a_state(4, [1]), zero_state(LAYOUTS[4], "model")
    mixed = blend(a, zero, 0.5)
    numerator, denominator = true_scale(mixed)
    one, other = true_scale(a)
    assert torch.allclose(numerator / denominator, one / other)
    assert torch.allclose(denominator / other, torch.tensor(0.5, dtype=torch.float64))


def test_parts_choose_what_is_blended():
    a, b = a_state(7, [1]), a_state(7, [2])
    mixed = blend(a, b, 0.5, parts=[1, "blocks.0.att_kv"])
    kept = {"blocks.0.att_x_prev", "blocks.0.ffn_x_prev"}
    for name in a:
        assert torch.equal(mixed[name], a[name]) == (name in kept)
    taken = blend(a, b, 0, parts=["wkv"])
    assert all(torch.equal(taken[n], (b if n.endswith("att_kv") else a)[n]) for n in a)
    assert taken.derivation not in (a.derivation, b.derivation)
    assert blend(a, b, 1, parts=["wkv"]) is a


@pytest.mark.parametrize("parts", [["att_aa"], [7], ["att_kv"], ["blocks.0.att_pp"], [True]])
def test_parts_that_mean_nothing_are_refused(parts):
    a = a_state(4, [1])
    with pytest.raises(ValueError, match=r"part of an RWKV-4|means nothing"):
        blend(a, a_state(4, [2]), 0.5, parts=parts)


def test_parts_may_be_one_kind():
    assert chosen(LAYOUTS[4], "wkv") == {
        f"blocks.{layer}.att_{each}" for layer in (0, 1) for each in ("aa", "bb", "pp")
    }


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(alpha):
    a = a_state(7, [1])
    with pytest.raises(ValueError, match="alpha"):
        blend(a, a, alpha)


@pytest.mark.parametrize("weights", [[], [1.0], [0.5, 0.6], [2.0, -1.0]])
def test_weights_that_do_not_fit_are_refused(weights):
    a = a_state(7, [1])
    with pytest.raises(ValueError, match=r"[Ww]eights"):
        blend_many([a, a], weights)


def test_states_of_two_models_do_not_mix():
    a = random_state([1], layout=LAYOUTS[7])
    for b in (
        random_state([1], layout=LAYOUTS[7], fingerprint="other"),
        random_state([1], layout=LAYOUTS[6]),
    ):
        for join in (lambda a, b: blend(a, b, 0.5), distance):
            with pytest.raises(StateMismatch):
                join(a, b)


def test_a_blend_counts_the_longest_text_and_keeps_a_common_block():
    a, b = a_state(7, [1, 2, 3]).with_system_digest("x"), a_state(7, [4]).with_system_digest("x")
    assert blend(a, b, 0.5).n_tokens == 3
    assert blend(b, a, 0.5).n_tokens == 3
    assert blend(a, b, 0.5).system_digest == "x"
    assert blend(a, b.with_system_digest(None), 0.5).system_digest is None


def test_the_naive_blend_of_rwkv_4_answers_otherwise(models):
    """Adding the accumulators as they stand weighs each past by a scale of its own."""
    runtime = models[4]
    zero = runtime.zero_state()
    a = runtime.forward([11, 4, 250, 17], zero)[1]
    b = runtime.forward([88, 9, 130, 200, 31], zero)[1]
    naive = {name: 0.5 * a[name] + 0.5 * b[name] for name in a}
    four = RWKVState(a.layout, naive, a.derivation)
    right = blend(a, b, 0.5)
    # In true scale the blend is what the formula says; the naive one is not.
    for got, one, other in zip(true_scale(right), true_scale(a), true_scale(b), strict=True):
        assert torch.allclose(got, 0.5 * one + 0.5 * other, rtol=1e-4)
    assert (logits(runtime, four) - logits(runtime, right)).abs().max() > 1e-2


# -- decay ---------------------------------------------------------------------------------------


@given(VERSIONS, TOKENS)
def test_decay_by_one_is_identity(version, tokens):
    state = a_state(version, tokens)
    assert decay(state, 1) is state


@given(VERSIONS, TOKENS, SHARES, SHARES)
def test_decays_multiply(version, tokens, one, other):
    state = a_state(version, tokens)
    assert distance(decay(decay(state, one), other), decay(state, one * other)).total < 1e-3


@given(VERSIONS, TOKENS, SHARES)
def test_decay_leaves_the_token_shift_and_scales_the_past(version, tokens, factor):
    state = a_state(version, tokens)
    after = decay(state, factor)
    for name in state:
        if name.endswith("x_prev"):
            assert torch.equal(after[name], state[name])
    if version == 4:
        for got, was in zip(true_scale(after), true_scale(state), strict=True):
            assert torch.allclose(got, factor * was, rtol=1e-4)
    else:
        assert torch.equal(after["blocks.1.att_kv"], factor * state["blocks.1.att_kv"])


@pytest.mark.parametrize("version", LAYOUTS)
def test_decay_by_nothing_leaves_the_last_token_alone(version):
    state, zero = a_state(version, [1]), zero_state(LAYOUTS[version], "model")
    after = decay(state, 0)
    for name in state:
        assert torch.equal(after[name], (state if name.endswith("x_prev") else zero)[name])


def test_decay_of_some_layers():
    state = a_state(7, [1])
    after = decay(state, 0.5, parts=[1])
    changed = {name for name in state if not torch.equal(after[name], state[name])}
    assert changed == {"blocks.1.att_kv"}
    with pytest.raises(ValueError, match="token shift"):
        decay(state, 0.5, parts=["ffn_x_prev"])
    for factor in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="factor"):
            decay(state, factor)


# -- renormalise ---------------------------------------------------------------------------------


@given(TOKENS)
def test_renormalise_keeps_what_is_meant_and_is_idempotent(tokens):
    state = a_state(4, tokens)
    after = renormalise(state)
    for layer in (0, 1):
        for got, was in zip(true_scale(after, layer), true_scale(state, layer), strict=True):
            assert torch.allclose(got, was, rtol=1e-5)
    assert after["blocks.0.att_bb"].eq(1).all()
    assert renormalise(after) is after


@given(tokens=TOKENS, factor=st.sampled_from([1e-20, 1e-3, 1e3, 1e20]))
def test_renormalise_keeps_the_logits(models, tokens, factor):
    """Also of a state whose accumulators have grown near the end of fp32's range."""
    runtime = models[4]
    state = runtime.forward(tokens, runtime.zero_state())[1]
    grown = RWKVState(
        state.layout,
        {
            name: state[name] * factor
            if name.endswith(("att_aa", "att_bb"))
            else state[name] - (math.log(factor) if name.endswith("att_pp") else 0)
            for name in state
        },
        state.derivation,
    )
    assert torch.allclose(
        logits(runtime, renormalise(grown)), logits(runtime, grown), atol=1e-5, rtol=0
    )


def test_the_naive_normalisation_changes_the_answer(models):
    runtime = models[4]
    state = runtime.forward([11, 4, 250, 17], runtime.zero_state())[1]
    tensors = {name: state[name] for name in state}
    for layer in range(state.layout.n_layer):
        scale = 10 * tensors[f"blocks.{layer}.att_aa"].abs().max()
        for each in ("att_aa", "att_bb"):
            tensors[f"blocks.{layer}.{each}"] /= scale
    naive = RWKVState(state.layout, tensors, state.derivation)
    assert (logits(runtime, naive) - logits(runtime, state)).abs().max() > 1e-2


@pytest.mark.parametrize("version", [5, 6, 7])
def test_other_versions_need_no_renormalising(version):
    state = a_state(version, [1])
    assert renormalise(state) is state


@pytest.mark.parametrize("version", LAYOUTS)
def test_renormalise_brings_no_nan_back(version):
    state = a_state(version, [1])
    tensors = {name: state[name] for name in state}
    tensors["blocks.1.ffn_x_prev"][3] = math.nan
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn_x_prev"):
        renormalise(RWKVState(state.layout, tensors, state.derivation))


# -- references ----------------------------------------------------------------------------------


@given(VERSIONS, TOKENS, TOKENS, SHARES)
def test_no_result_has_the_reference_of_a_text(version, first, second, share):
    a, b = a_state(version, first), a_state(version, [*second, 1])
    results = [blend(a, b, share), blend(b, a, share), decay(a, share), decay(b, share)]
    results += [blend(a, b, share, parts=[0]), decay(a, share, parts=[1])]
    texts = [a, b, zero_state(a.layout, "model"), a.advanced(dict(a), [1])]
    made = {reference(each.derivation, KEY) for each in results}
    assert not made & {reference(each.derivation, KEY) for each in texts}
    if a.derivation != b.derivation:
        assert len(made) == len(results)


def test_the_same_operation_has_the_same_reference():
    a, b = a_state(7, [1]), a_state(7, [2])
    assert blend(a, b, 0.5).derivation == blend(a, b, 0.5).derivation
    assert blend(a, b, 0.5).derivation != blend(a, b, 0.25).derivation
    assert renormalise(a_state(4, [1])).derivation != a_state(4, [1]).derivation


# -- repeat --------------------------------------------------------------------------------------


def test_repeat_gives_values_that_share_nothing():
    state = a_state(7, [1])
    copies = state.repeat(3)
    assert copies == [state] * 3
    places = {each.shared(name).data_ptr() for each in [*copies, state] for name in state}
    assert len(places) == 4 * len(state)
    assert state.repeat(0) == []
    with pytest.raises(ValueError):
        state.repeat(-1)


def test_a_list_of_one_state_is_one_state(runtime):
    """The trap: plain tensors that are repeated by name are changed for all at once."""
    zero = runtime.zero_state()
    plain = [[zero[name] for name in zero]] * 2
    plain[0][0].add_(1)
    assert torch.equal(plain[1][0], plain[0][0])
    first, second = zero.repeat(2)
    first.shared(next(iter(first))).add_(1)  # what no caller should do
    assert second == zero
    _, after = runtime.forward_batch([[1], [2]], zero.repeat(2))
    assert after[0] != after[1]


# -- distance ------------------------------------------------------------------------------------


@given(VERSIONS, TOKENS, TOKENS, TOKENS)
def test_l2_is_a_metric(version, first, second, third):
    a, b, c = (a_state(version, each) for each in (first, second, third))
    between = distance(a, b).total
    assert between == pytest.approx(distance(b, a).total)
    assert distance(a, a).total == 0
    assert (between == 0) == (a.derivation == b.derivation)
    assert distance(a, c).total <= between + distance(b, c).total + 1e-9


@given(VERSIONS, TOKENS, TOKENS, st.sampled_from(["l2", "cosine", "rms_relative"]))
def test_every_metric_is_symmetric_and_zero_for_equals(version, first, second, metric):
    a, b = a_state(version, first), a_state(version, second)
    found = distance(a, b, metric)
    assert distance(a, a, metric).total == 0
    assert found.total == pytest.approx(distance(b, a, metric).total)
    assert len(found.layers) == 2
    assert float(found) == found.total >= 0
    if metric == "l2":
        assert found.total == pytest.approx(math.hypot(*found.layers))
    if metric == "rms_relative":
        assert found.total <= 2


@pytest.mark.parametrize("metric", ["l2", "cosine", "rms_relative"])
def test_a_broken_state_is_no_distance_from_anything(metric):
    a, b = a_state(7, [1]), a_state(7, [2])
    tensors = {name: a[name] for name in a}
    tensors["blocks.0.att_kv"][0, 0, 0] = math.nan
    broken = RWKVState(a.layout, tensors, a.derivation)
    found = distance(broken, b, metric)
    assert math.isnan(found.total)
    assert math.isnan(found.layers[0])
    assert found.layers[1] == distance(a, b, metric).layers[1]


def test_cosine_says_where_it_is_no_metric():
    a = a_state(7, [1])
    twice = RWKVState(a.layout, {name: 2 * a[name] for name in a}, a.derivation)
    assert distance(a, twice, "cosine").total == pytest.approx(0, abs=1e-12)
    assert distance(a, zero_state(a.layout, "model"), "cosine").total == 1


def test_states_that_mean_the_same_are_no_distance_apart():
    state = a_state(4, [1])
    after = renormalise(state)
    naive = sum(float(torch.dist(state[name], after[name])) for name in state)
    assert naive > 1
    assert distance(state, after).total < 1e-4


def test_logits_kl_asks_the_model(runtime, read):
    a, b = read([1, 2, 3]), read([9, 8, 7, 6])
    found = distance(a, b, "logits_kl", runtime=runtime, probe=[5, 6])
    assert found.total > 0
    assert len(found.layers) == 3
    assert any(found.layers)
    same = distance(a, a.repeat(1)[0], "logits_kl", runtime=runtime, probe=[5])
    assert same.total == pytest.approx(0, abs=1e-12)
    log_p, log_q = (logits(runtime, s, [5, 6]).double().log_softmax(-1) for s in (a, b))
    assert found.total == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-6)


def test_a_distance_without_what_it_needs_says_so(runtime):
    a = a_state(7, [1])
    with pytest.raises(ValueError, match="probe"):
        distance(a, a, "logits_kl")
    for asked in ({"runtime": runtime}, {"probe": [5]}):
        with pytest.raises(ValueError, match="are for metric='logits_kl', and 'l2' asks no model"):
            distance(a, a, **asked)
    with pytest.raises(TypeError, match=r"chat.get_token_ids\('User:'\)"):
        distance(a, a, "logits_kl", runtime=runtime, probe="User:")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"object, which reads no tokens"):
        distance(a, a, "logits_kl", runtime=object(), probe=[5])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="l2, cosine"):
        distance(a, a, "l1")  # type: ignore[arg-type]
