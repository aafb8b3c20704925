"""Choices beside the logits: the CPU's tokens, id for id, and each slot's counts and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_rwkv_state.engine import Sampling
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays, sample
from langchain_rwkv_state.runtime.sampling import SamplerState, increments
from tests.helpers.card_steps import run, some_case
from tests.helpers.devices import on_card
from tests.helpers.logits import SIZES

SETTINGS = (
    Sampling(temperature=0),
    Sampling(seed=1, top_p=0.3),
    Sampling(seed=2, top_p=0.3, presence_penalty=0.3, frequency_penalty=0.3),
    Sampling(seed=3, top_p=1, temperature=1.3, frequency_penalty=0.7, penalty_decay=0.5),
    Sampling(seed=4, top_p=0.9, top_k=5, presence_penalty=-0.4),
    Sampling(temperature=0, presence_penalty=2, frequency_penalty=1e308),
)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from(SIZES),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_it_chooses_what_the_cpu_chooses(seed: int, size: int, dtype: torch.dtype) -> None:
    case = some_case(np.random.default_rng(seed), size, 8, dtype)
    arrays = case.arrays()
    chosen, best, finite = run(sample, case, arrays)
    assert chosen.tolist() == case.expected()
    rows = case.logits.float()
    assert finite.tolist() == rows.isfinite().all(1).int().tolist()
    good = finite.bool()
    assert best[good].tolist() == rows.numpy().argmax(1)[good.numpy()].tolist()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_slots_that_chose_go_on_and_the_others_stay_as_they_were(seed: int) -> None:
    case = some_case(np.random.default_rng(seed), 100, 8)
    before, arrays = case.arrays(), case.arrays()
    arrays.last.fill_(-5)
    chosen = run(sample, case, arrays)[0].tolist()
    for slot, token in zip(case.slot.tolist(), chosen, strict=True):
        assert arrays.last[slot] == (-5 if token < 0 else token)
        assert arrays.n[slot] - before.n[slot] == (token >= 0)
        if token < 0 or not (arrays.presence[slot] or arrays.frequency[slot]):
            assert torch.equal(arrays.counts[slot], before.counts[slot])
            continue
        counts = before.counts[slot].clone()
        counts[counts >= 0] *= arrays.decay[slot]
        counts[token] = max(float(counts[token]), 0.0)
        counts[token] += arrays.counted[token]
        assert torch.equal(arrays.counts[slot], counts)


@pytest.mark.parametrize("device", ["cpu", on_card("cuda", name="cuda")])
def test_a_large_vocabulary(device: str) -> None:
    case = some_case(np.random.default_rng(5), 65_536, 20, torch.float16).on(device)
    assert run(sample, case, case.arrays())[0].tolist() == case.expected()


@pytest.mark.parametrize("fetched", [True, False])
def test_thirty_choices_are_those_of_the_samplers(fetched: bool) -> None:
    """One crowd chooses on the CPU; the other's samplers follow what the arrays chose."""
    size, count = 300, len(SETTINGS)
    pieces = [b"x", b"7", b" ", b"\n"] * (size // 4)
    alone, following = ([Sampler(each) for each in SETTINGS] for _ in range(2))
    arrays = SamplerArrays(count, size, "cpu")
    arrays.counted.copy_(torch.from_numpy(increments(pieces)))
    slots = torch.arange(count, dtype=torch.int32)
    none, every = torch.full_like(slots, -1), torch.ones_like(slots)
    out = torch.empty(3, count, dtype=torch.int32)
    masks = torch.zeros(1, -(-size // 32), dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        if step in (0, 11):  # in the middle too: what was handed over is all there is
            for slot, sampler in enumerate(following):
                arrays.load(slot, sampler.handed_over())
        logits = torch.randn(count, size, generator=generator) * (1 + step % 3)
        sample(logits, slots, every, none, masks, arrays, out)
        assert arrays.last[:-1].tolist() == out[0].tolist()
        for slot, (one, other) in enumerate(zip(alone, following, strict=True)):
            chosen, best, finite = out[:, slot].tolist()
            scores: Any = logits[slot].numpy() if fetched else no_logits
            row = LogitsRow(scores, best, bool(finite))
            other.chose(row, None, chosen)
            token = other.choose(row)
            assert token == chosen == one.pick(logits[slot])
            one.saw(token, pieces[token])
            other.saw(token, pieces[token])
    assert arrays.n[:-1].tolist() == [sampler.n_chosen for sampler in following] == [30] * count


def no_logits() -> Any:
    raise AssertionError("the logits stay where they are")


def test_loading_a_slot_leaves_the_others_and_what_it_chose_last() -> None:
    arrays = SamplerArrays(3, 10, "cpu")
    arrays.last.copy_(torch.arange(4))
    ids, counts = np.array([2, 7]), np.array([0.0, 1.5], dtype=np.float32)
    state = SamplerState(0.5, 0.25, 99, 0.75, 0.125, 0.996, 2**64 - 1, 12, ids, counts)
    arrays.load(1, state)
    assert arrays.temperature.tolist() == [0, 0.5, 0, 0]
    assert arrays.top_p.tolist() == [0, 0.25, 0, 0]
    assert arrays.top_k.tolist() == [0, 10, 0, 0]
    assert arrays.presence.tolist() == [0, 0.75, 0, 0]
    assert arrays.frequency.tolist() == [0, 0.125, 0, 0]
    assert arrays.decay[1] == np.float32(0.996)
    assert arrays.key.tolist() == [0, -1, 0, 0]
    assert arrays.n.tolist() == [0, 12, 0, 0]
    assert arrays.last.tolist() == [0, 1, 2, 3]
    assert arrays.counts[1].tolist() == [-1, -1, 0, -1, -1, -1, -1, 1.5, -1, -1]
    assert (arrays.counts[[0, 2, 3]] == -1).all()
    arrays.load(1, state._replace(ids=ids[:0], counts=counts[:0]))
    assert (arrays.counts == -1).all()
