"""Common recipes for RWKV-4 states beside their right form, in the order of `docs/corrections.md`.

Each test runs a recipe as it is found in tutorials, and asserts that it differs from the right form
by something that matters, or where it is right that it does not. The model is a small RWKV-4 that
was trained to remember facts (`benchmarks.rwkv4_training`).
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.corrections import (
    FACTS,
    Told,
    four_tensors,
    knows,
    naive_blend,
    naive_decay,
    naive_half,
    naive_normalise,
    recalled,
    replaced,
    told,
)
from benchmarks.public_models import layout_of
from benchmarks.rwkv4_training import MODEL
from benchmarks.rwkv4_words import KINDS, WORDS, filler, ids
from langchain_rwkv_state import MemoryStateStore, RWKVState
from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.runtime import clamp_decay, half_life, load_runtime, text_loss
from langchain_rwkv_state.runtime.checkpoint import read_tensors
from langchain_rwkv_state.state import (
    blend,
    calibrate,
    decay,
    distance,
    encode,
    inspect,
    lossy,
    memory,
    renormalise,
)
from langchain_rwkv_state.toolbox.reference import ReferenceModel
from tests.helpers.states import SetClock, random_state

CASES = 20
KB = 1000


@pytest.fixture(scope="module")
def runtime():
    loaded = load_runtime(MODEL, "package cpu fp32")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def plain(runtime):
    """The `rwkv` package's own model: lists of tensors in and out."""
    return runtime._model._model


@pytest.fixture(scope="module")
def pairs(runtime) -> list[tuple[Told, Told]]:
    """Pairs of conversations, each of three facts that the other has not, then forty words."""
    rng, made = Random(1), []
    for _ in range(CASES):
        kinds = rng.sample(KINDS, 2 * FACTS)
        made.append((told(runtime, rng, kinds[:FACTS], 40), told(runtime, rng, kinds[FACTS:], 40)))
    return made


@pytest.fixture(scope="module")
def talks(pairs):
    return [first for first, _ in pairs]


def ask(runtime, talk, state=None):
    return runtime.forward(ids(talk.case.asked), talk.state if state is None else state)[0]


def right_answers(runtime, talks, change=lambda state: state):
    return sum(knows(ask(runtime, talk, change(talk.state)), talk.case) for talk in talks)


def gap(runtime, talk, state):
    return float((ask(runtime, talk, state) - ask(runtime, talk)).abs().max())


def close(tensors, most):
    one, other = tensors
    return bool(torch.allclose(one, other, atol=most))


def as_list(state):
    return [state[name].clone() for name in state]


def test_the_model_remembers_so_that_what_recipes_lose_can_be_seen(runtime, pairs, talks):
    assert right_answers(runtime, talks) >= 0.95 * CASES
    strangers = sum(knows(ask(runtime, a, b.state), a.case) for a, b in pairs)
    assert strangers <= 0.2 * CASES


# -- state components ----------------------------------------------------------------------------


def test_rwkv_4_has_five_tensors_a_layer(runtime, plain, talks):
    _, state = plain.forward(ids(talks[0].case.told), None)
    assert len(state) == 5 * runtime.layout.n_layer
    kinds = [name.rpartition(".")[2] for name in talks[0].state][:5]
    assert kinds == ["att_x_prev", "att_aa", "att_bb", "att_pp", "ffn_x_prev"]


def test_four_tensors_do_not_restore_a_conversation(runtime, talks):
    known = right_answers(runtime, talks)
    assert right_answers(runtime, talks, four_tensors) < 0.75 * known
    assert max(gap(runtime, talk, four_tensors(talk.state)) for talk in talks) > 1


@pytest.mark.parametrize(
    ("n_layer", "n_embd", "said_kb"),
    [
        (12, 768, 37),
        (24, 1024, 98),
        (24, 2048, 196),
        (32, 2560, 327),
        (32, 4096, 524),
        (40, 5120, 819),
    ],
)
def test_sizes_in_the_common_table_are_counts_and_not_bytes(n_layer, n_embd, said_kb):
    assert 4 * n_layer * n_embd / KB == pytest.approx(said_kb, abs=1)  # numbers, of four tensors
    nbytes = layout_of(4, n_layer, n_embd).nbytes
    assert nbytes == 5 * 4 * n_layer * n_embd
    assert nbytes / KB == pytest.approx(5 * said_kb, rel=0.02)


def test_a_state_has_one_size_whatever_was_read(runtime):
    sizes = set()
    for words in (1, 30, 300):
        text = ids(filler(Random(words), words))
        sizes.add(runtime.forward(text, runtime.zero_state())[1].nbytes)
    assert len(sizes) == 1


# -- initialisation ------------------------------------------------------------------------------


def test_no_state_is_the_zero_state(runtime, plain, talks):
    text = ids(talks[0].case.told)
    logits, _ = plain.forward(text, None)
    assert torch.equal(logits, runtime.forward(text, runtime.zero_state())[0])


def test_a_log_scale_of_zero_is_harmless_until_keys_are_small(runtime):
    """An empty past has no weight in any scale; but small first keys vanish beside exp(0)."""
    zero = runtime.zero_state()
    zeros = replaced(zero, {name: torch.zeros_like(zero[name]) for name in zero})
    assert close([runtime.forward([3, 4, 5], each)[0] for each in (zeros, zero)], 1e-5)
    weights = {name: tensor.float() for name, tensor in read_tensors(MODEL).items()}
    weights["blocks.0.ln1.bias"] = torch.ones(128)
    weights["blocks.0.att.key.weight"] = torch.full((128, 128), -2.0)  # keys around -256
    model = ReferenceModel(weights)
    empty = model.zero_tensors()
    _, right = model.step(3, empty)
    _, lost = model.step(3, {name: torch.zeros_like(empty[name]) for name in empty})
    assert (right["blocks.0.att_bb"] > 0).all()
    assert (lost["blocks.0.att_bb"] == 0).all()


def test_a_warm_state_is_the_same_token_by_token_and_in_one_go(runtime, talks):
    text = ids(talks[0].case.told)
    state = runtime.zero_state()
    for token in text:
        _, state = runtime.forward([token], state)
    assert distance(state, talks[0].state, "rms_relative").total < 1e-5
    assert torch.allclose(ask(runtime, talks[0], state), ask(runtime, talks[0]), atol=1e-4)


def test_a_forward_gives_the_next_words_logits_and_no_response(runtime, talks):
    """What is called `response` is one vector; the answer is not in the state until it is read."""
    talk = talks[0]
    logits, state = runtime.forward(ids(talk.case.asked), talk.state)
    assert logits.shape == (len(WORDS),)
    assert WORDS[int(logits.argmax())] == talk.case.answer
    _, answered = runtime.forward(ids([talk.case.answer]), state)
    ahead = [runtime.forward(ids(["."]), each)[0] for each in (state, answered)]
    assert not close(ahead, 0.1)


# -- update rules --------------------------------------------------------------------------------


def keys_and_values(runtime, tokens):
    """Returns the first layer's keys and values of a text, as the formulas compute them."""
    w = {name: tensor.float().squeeze() for name, tensor in read_tensors(MODEL).items()}
    att, norm = "blocks.0.att.", torch.nn.functional.layer_norm
    x = w["emb.weight"][tokens]
    for name in ("ln0", "ln1"):
        x = norm(x, (128,), w[f"blocks.0.{name}.weight"], w[f"blocks.0.{name}.bias"])
    back = torch.cat([torch.zeros(1, 128), x[:-1]])
    k, v = (
        (x * w[f"{att}time_mix_{n[0]}"] + back * (1 - w[f"{att}time_mix_{n[0]}"]))
        @ w[f"{att}{n}.weight"].T
        for n in ("key", "value")
    )
    return x, k.double(), v.double(), w[f"{att}time_decay"].double()


def accumulate(weights, values, decay):
    numerator = denominator = torch.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        faded = torch.exp(-torch.exp(decay))
        numerator = faded * numerator + weight * value
        denominator = faded * denominator + weight
    return numerator, denominator


def test_a_key_counts_as_its_exponential(runtime, talks):
    """`aa = exp(w) aa + k v` gives weights below zero, and another mean than the model's."""
    tokens = ids(talks[0].case.told)
    _, k, v, decay_ = keys_and_values(runtime, tokens)
    state = talks[0].state
    mean = (state["blocks.0.att_aa"] / state["blocks.0.att_bb"]).double()
    numerator, denominator = accumulate(k.exp(), v, decay_)
    # The package norms the embedding in the file's fp16, hence the tolerance.
    assert torch.allclose(numerator / denominator, mean, atol=1e-2)
    assert torch.allclose(
        denominator.log(),
        state["blocks.0.att_bb"].double().log() + state["blocks.0.att_pp"],
        atol=1e-2,
    )
    numerator, denominator = accumulate(k, v, decay_)
    assert (denominator < 0).float().mean() > 0.2
    assert ((numerator / denominator - mean).abs() > 0.1).float().mean() > 0.5


def test_a_small_decay_is_a_long_memory_and_time_decay_is_not_it(tmp_path):
    """`w = -0.01` is long and `w = -5` short, as is said; as `time_decay` they are the reverse."""
    assert math.log(2) / 0.01 == pytest.approx(69.3, abs=0.1)
    assert math.log(2) / 5.0 == pytest.approx(0.14, abs=0.01)
    for number, tokens in ((-0.01, 0.70), (-5.0, 102.9)):
        clamped = clamp_decay(MODEL, number, number)
        kept = clamped._model._model.w["blocks.0.att.time_decay"]  # type: ignore[attr-defined]
        clamped.close()
        assert math.log(2) / -float(kept[0]) == pytest.approx(tokens, abs=0.1)


def test_what_the_token_shift_keeps_is_the_normed_input(runtime, talks):
    tokens = ids(talks[0].case.told)
    x, *_ = keys_and_values(runtime, tokens)
    state = talks[0].state
    assert torch.allclose(state["blocks.0.att_x_prev"], x[-1], atol=2e-3)
    embedding = read_tensors(MODEL)["emb.weight"][tokens[-1]].float()
    assert not torch.allclose(state["blocks.0.att_x_prev"], embedding, atol=0.5)
    assert not torch.allclose(state["blocks.0.att_x_prev"], state["blocks.0.ffn_x_prev"], atol=0.5)


# -- saving --------------------------------------------------------------------------------------


def test_the_first_four_entries_are_one_layer_under_wrong_names(plain, talks):
    _, state = plain.forward(ids(talks[0].case.told), None)
    saved = dict(zip(("att_aa", "att_ab", "att_x_prev", "ffn_x_prev"), state[:4], strict=True))
    right = talks[0].state
    assert torch.equal(saved["att_aa"], right["blocks.0.att_x_prev"])
    assert torch.equal(saved["att_ab"], right["blocks.0.att_aa"])
    assert torch.equal(saved["att_x_prev"], right["blocks.0.att_bb"])
    assert torch.equal(saved["ffn_x_prev"], right["blocks.0.att_pp"])
    restored = [saved[name] for name in ("att_aa", "att_ab", "att_x_prev", "ffn_x_prev")]
    with pytest.raises(IndexError):
        plain.forward(ids(talks[0].case.asked), restored)


def test_a_saved_state_comes_back_bit_for_bit_and_says_whose_it_is(runtime, talks, tmp_path):
    talks[0].state.save(tmp_path / "a.safetensors")
    loaded = RWKVState.load(tmp_path / "a.safetensors")
    assert loaded == talks[0].state
    assert loaded.fingerprint == runtime.fingerprint
    torch.save(as_list(talks[0].state), tmp_path / "a.pt")
    assert isinstance(torch.load(tmp_path / "a.pt", weights_only=True), list)  # of no model


# -- compression ---------------------------------------------------------------------------------


def test_halving_everything_works_while_numbers_are_small(runtime, talks):
    known = right_answers(runtime, talks)
    assert right_answers(runtime, talks, naive_half) == known
    halved = RWKVState(
        talks[0].state.layout, dict(lossy(talks[0].state, "fp16")), talks[0].state.derivation
    )
    assert gap(runtime, talks[0], halved) < 0.01
    # Half of four tensors, and the log-scale whole: 3 of 5 parts.
    large = random_state([1], layout=layout_of(4, 12, 768))
    assert len(encode(lossy(large, "fp16"), codec="fp16")) == pytest.approx(
        0.6 * large.nbytes, rel=0.05
    )


def test_halving_everything_overflows_where_the_codec_does_not(runtime, talks):
    """The same state in another scale: accumulators beyond 65,504 become infinite."""
    state = talks[0].state
    scaled = {name: state[name] * 2**20 for name in state if name[-2:] in ("aa", "bb")}
    scaled |= {name: state[name] - 20 * math.log(2) for name in state if name.endswith("pp")}
    same = replaced(state, scaled)
    assert gap(runtime, talks[0], same) < 1e-3
    assert not torch.isfinite(ask(runtime, talks[0], naive_half(same))).all()
    kept = replaced(same, dict(lossy(same, "fp16")))
    assert gap(runtime, talks[0], kept) < 0.01


def test_a_halved_log_scale_of_nothing_is_minus_infinity(runtime):
    zero = naive_half(runtime.zero_state())
    assert torch.isinf(zero["blocks.0.att_pp"]).all()
    kept = lossy(runtime.zero_state(), "fp16")
    assert torch.isfinite(kept["blocks.0.att_pp"]).all()


# -- session managers ----------------------------------------------------------------------------


class StateManager:
    """As it is found: a dict, and for expiry the time of the last save."""

    def __init__(self, expiry_seconds: float = math.inf) -> None:
        self.sessions: dict[str, Any] = {}
        self.expiry = expiry_seconds

    def get_state(self, session_id: str) -> Any:
        if session_id in self.sessions:
            state, timestamp = self.sessions[session_id]
            if time.time() - timestamp < self.expiry:
                return state
            del self.sessions[session_id]
        return None

    def save_state(self, session_id: str, state: Any) -> None:
        self.sessions[session_id] = (state, time.time())


def test_what_the_manager_stores_is_changed_by_the_next_forward(runtime, plain, talks):
    """A turn that is given up, or fails, has changed the stored conversation all the same."""
    manager = StateManager()
    manager.save_state("alice", as_list(talks[0].state))
    before = [tensor.clone() for tensor in manager.get_state("alice")]
    plain.forward(ids(["city", "oslo", "."]), manager.get_state("alice"))  # and no save_state
    assert not all(map(torch.equal, manager.get_state("alice"), before))

    with MemoryStateStore() as store:
        ref = store.stage(talks[0].state)
        store.commit("alice", ref, None)
        runtime.forward(ids(["city", "oslo", "."]), store.get(ref))
        assert store.head("alice") == ref
        assert store.get(ref) == talks[0].state


def test_two_turns_at_once_lose_one_in_the_manager_and_none_in_the_store(runtime, talks):
    words = (ids(["city", "oslo", "."]), ids(["pet", "fox", "."]))
    manager, both_read = StateManager(), threading.Barrier(2)
    manager.save_state("alice", talks[0].state)

    def turn(tokens):
        state = manager.get_state("alice")
        both_read.wait()
        manager.save_state("alice", runtime.forward(tokens, state)[1])

    threads = [threading.Thread(target=turn, args=(each,)) for each in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n_tokens = talks[0].state.n_tokens
    assert manager.get_state("alice").n_tokens == n_tokens + 3  # one turn of two, nobody was told

    with MemoryStateStore() as store:
        ref = store.stage(talks[0].state)
        store.commit("alice", ref, None)
        made = [store.stage(runtime.forward(each, talks[0].state)[1]) for each in words]
        store.commit("alice", made[0], ref)
        with pytest.raises(SessionConflict):
            store.commit("alice", made[1], ref)
        assert store.head("alice") == made[0]


def test_an_expiry_from_the_last_save_ends_a_session_that_is_in_use(talks, monkeypatch):
    clock = SetClock()
    monkeypatch.setattr(time, "time", clock)
    manager = StateManager(expiry_seconds=3600)
    manager.save_state("alice", talks[0].state)
    with MemoryStateStore(ttl=3600, clock=clock) as store:
        store.commit("alice", store.stage(talks[0].state), None)
        for _ in range(3):  # looked at every half hour
            clock.advance(1800)
            found, kept = manager.get_state("alice"), store.head("alice")
            assert kept is not None
        assert found is None
        clock.advance(3601)
        assert store.head("alice") is None


def test_an_expiry_at_the_next_look_keeps_what_nobody_looks_at(talks, monkeypatch):
    clock = SetClock()
    monkeypatch.setattr(time, "time", clock)
    manager = StateManager(expiry_seconds=3600)
    with MemoryStateStore(ttl=3600, clock=clock) as store:
        for number in range(10):
            manager.save_state(f"user {number}", talks[0].state)
            store.commit(f"user {number}", store.stage(talks[0].state), None)
        clock.advance(3700)
        assert len(manager.sessions) == 10
        assert store.prune()
        assert not list(store.sessions())


# -- interpolation -------------------------------------------------------------------------------


def test_tensors_added_as_they_stand_lose_facts_that_a_blend_keeps(runtime, pairs):
    def both(mix):
        return sum(
            knows(ask(runtime, each, mix(a.state, b.state)), each.case)
            for a, b in pairs
            for each in (a, b)
        )

    naive = both(lambda a, b: naive_blend(a, b, 0.5))
    ours = both(lambda a, b: blend(a, b, 0.5))
    assert ours >= 0.9 * 2 * CASES
    assert naive <= 0.6 * ours


def test_alpha_is_no_share_of_what_is_remembered(runtime, pairs):
    """At 0.7 to 0.3: facts that do not compete mostly survive, of two that do the heavier wins."""
    mixed = [blend(a.state, b.state, 0.7) for a, b in pairs]
    second = sum(
        knows(ask(runtime, b, state), b.case) for (_, b), state in zip(pairs, mixed, strict=True)
    )
    assert second > 0.6 * CASES
    rng, wins = Random(2), {"first": 0, "second": 0}
    for _ in range(CASES):
        kinds = rng.sample(KINDS, FACTS)
        a, b = (told(runtime, rng, kinds, 40) for _ in range(2))
        logits = ask(runtime, a, blend(a.state, b.state, 0.7))
        wins["first"] += knows(logits, a.case)
        wins["second"] += knows(logits, b.case)
    assert wins["first"] > 3 * wins["second"]


# -- editing -------------------------------------------------------------------------------------


def test_multiplied_accumulators_are_a_decay_in_true_scale(runtime, talks):
    for talk in talks:
        both = (naive_decay(talk.state, 0.3), decay(talk.state, 0.3))
        logits = [ask(runtime, talk, state) for state in both]
        assert close(logits, 1e-4)


def test_a_decay_by_three_tenths_does_not_forget_seven(runtime, talks):
    known = right_answers(runtime, talks)
    assert right_answers(runtime, talks, lambda s: naive_decay(s, 0.3)) > 0.9 * known


# -- batches -------------------------------------------------------------------------------------


def test_a_state_for_each_sequence_is_a_batch(runtime, talks):
    tokens = [ids(talk.case.asked) for talk in talks[:4]]
    logits, _ = runtime.forward_batch(tokens, [talk.state for talk in talks[:4]])
    for row, talk in zip(logits, talks[:4], strict=True):
        assert torch.allclose(row, ask(runtime, talk), atol=1e-5)


def test_a_list_of_one_state_is_one_state_for_all(runtime, plain, talks):
    """`[prefix_state] * 4`: the second question is asked after the first."""
    prefix = as_list(talks[0].state)
    states, logits = [prefix] * 3, []
    questions = [ids(["city", "oslo", "."]), ids(["pet", "fox", "."]), ids(talks[0].case.asked)]
    for number, question in enumerate(questions):
        out, states[number] = plain.forward(question, states[number])
        logits.append(out)
    assert not torch.allclose(logits[2], ask(runtime, talks[0]), atol=0.1)
    right, _ = runtime.forward_batch(questions, talks[0].state.repeat(3))
    assert torch.allclose(right[2], ask(runtime, talks[0]), atol=1e-5)
    apart, _ = runtime.forward_batch(questions, [talks[0].state] * 3)  # cannot be changed
    assert torch.allclose(right, apart, atol=1e-5)


# -- debugging -----------------------------------------------------------------------------------


def test_a_state_cannot_be_taken_apart_into_four(plain, talks):
    _, state = plain.forward(ids(talks[0].case.told), None)
    with pytest.raises(ValueError, match="unpack"):
        _aa, _ab, _x, _ffn = state


def test_accumulators_of_a_sound_model_leave_the_common_range(runtime, talks):
    """0.1 to 10 is outrun by the denominators of a state from which every fact comes back."""
    largest = max(float(talk.state["blocks.0.att_bb"].max()) for talk in talks)
    assert largest > 10
    means = [float(t.state["blocks.0.att_aa"].abs().min()) for t in talks]
    assert min(means) < 0.1
    healthy = calibrate([talk.state for talk in talks])
    rng = Random(9)
    other = told(runtime, rng, rng.sample(KINDS, FACTS), 60).state
    assert inspect(other, healthy=healthy).sound
    broken = replaced(other, {"blocks.0.att_bb": other["blocks.0.att_bb"] * 100})
    assert inspect(broken, healthy=healthy).problems


# -- divergence ----------------------------------------------------------------------------------


def test_a_large_l2_distance_can_lie_between_states_that_mean_the_same(runtime, talks):
    state = talks[0].state
    same = renormalise(state)

    def naive(a, b):
        return sum(torch.dist(a[name], b[name]).item() for name in a)

    stranger = naive(state, talks[1].state)
    assert gap(runtime, talks[0], same) < 1e-4
    assert naive(state, same) > 0.2 * stranger
    assert distance(state, same).total < 1e-2
    assert distance(state, talks[1].state).total > 1


# -- overflow ------------------------------------------------------------------------------------


@given(
    keys=st.lists(st.floats(-300, 300), min_size=1, max_size=40),
    speed=st.floats(1e-4, 5),
)
def test_the_recurrence_cannot_overflow(keys, speed):
    """With the largest exponent taken out, the denominator stays between 1 and the tokens read."""
    bb, pp = torch.tensor(0.0), torch.tensor(-1e30)
    for key in torch.tensor(keys):
        top = torch.maximum(pp - speed, key)
        bb, pp = torch.exp(pp - speed - top) * bb + torch.exp(key - top), top
    assert 1 <= float(bb) <= len(keys) + 1e-3
    assert math.isfinite(float(pp))


def test_without_the_log_scale_it_does(runtime):
    keys, values = torch.full((3, 1), 100.0), torch.ones(3, 1)
    _, denominator = accumulate(keys.exp(), values, torch.tensor(-3.0))
    assert torch.isinf(denominator).all()


def test_dividing_accumulators_by_their_maximum_changes_answers(runtime, talks):
    worst = max(gap(runtime, talk, naive_normalise(talk.state)) for talk in talks)
    assert worst > 0.5
    assert max(gap(runtime, talk, renormalise(talk.state)) for talk in talks) < 1e-4


# -- underflow -----------------------------------------------------------------------------------


def test_a_large_negative_time_decay_is_what_lasts(runtime):
    found = half_life(MODEL).layers[0]
    decay_ = read_tensors(MODEL)["blocks.0.att.time_decay"].float()
    assert int(found.argmax()) == int(decay_.argmin())
    assert float(found.max()) > 2_000 > 1 > float(found.min())


def test_the_common_clamp_hardly_matters_to_time_decay_and_ruins_w(runtime):
    clamped, wrong = clamp_decay(MODEL, -8, -0.1), clamp_decay(MODEL, math.log(0.1), math.log(8))
    text = ids(["<start>", *filler(Random(3), 150)])
    known = recalled(runtime, CASES, 100)
    assert known >= 0.95 * CASES
    assert recalled(clamped, CASES, 100) == known
    assert recalled(wrong, CASES, 100) < 0.5 * known
    losses = [text_loss(each, text) for each in (runtime, clamped, wrong)]
    assert losses == pytest.approx([losses[0]] * 3, abs=0.02)  # and the loss does not tell
    clamped.close()
    wrong.close()


# -- beside a cache ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_layer", "n_embd", "said_gb"), [(24, 2048, 4.1), (32, 4096, 21.3)])
def test_the_common_table_of_caches_is_too_large_at_8k(n_layer, n_embd, said_gb):
    found = memory(layout_of(4, n_layer, n_embd), 8192)
    assert said_gb * 1e9 > 2.5 * found.cache  # 2 L D numbers of two bytes for each token
    assert found.cache / found.state == pytest.approx(1638, abs=1)
    assert found.grouped / found.state == pytest.approx(410, abs=1)


def test_recall_falls_with_distance_at_a_constant_size(runtime):
    near, far = (recalled(runtime, CASES, distance) for distance in (30, 800))
    assert near >= 0.95 * CASES
    assert far < near


# -- the page ------------------------------------------------------------------------------------


def test_every_line_of_the_page_names_tests_that_are_here():
    page = (Path(__file__).parents[2] / "docs/corrections.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) > 25
    named = set(itertools.chain.from_iterable(re.findall(r"`(test_\w+)`", row) for row in rows))
    here = {name for name in globals() if name.startswith("test_")}
    assert named <= here
    assert here - named <= {
        "test_every_line_of_the_page_names_tests_that_are_here",
        "test_the_model_remembers_so_that_what_recipes_lose_can_be_seen",
    }
