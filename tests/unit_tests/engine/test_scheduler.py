"""The schedule of a step: a bounded budget, shared fairly."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.engine.scheduler import share_out, share_step

WANTS = st.lists(st.integers(1, 3000), max_size=70)
BUDGET = st.integers(1, 600)


@dataclass(eq=False)
class Reader:
    wanted: int
    decodes: bool = False
    last_step: int = 0


@given(wants=WANTS, budget=BUDGET)
def test_a_budget_is_used_up_and_never_exceeded(wants, budget):
    given_ = share_out(wants, budget)
    assert sum(given_) == min(budget, sum(wants))
    assert all(0 <= got <= want for got, want in zip(given_, wants, strict=True))


def test_a_short_prompt_is_not_held_up_by_a_long_one():
    assert share_out([2000, 10], 64) == [54, 10]
    assert share_out([2000, 2000], 64) == [32, 32]


def test_shares_are_not_split_into_crumbs():
    assert share_out([100] * 10, 64) == [16] * 4 + [0] * 6


def test_every_decoding_request_reads_one_id_beside_the_budget():
    readers = [*(Reader(1, decodes=True) for _ in range(15)), Reader(2000)]
    assert [n for _, n in share_step(readers, 0, budget=64, idle_budget=256)] == [1] * 15 + [64]
    assert share_step(readers[-1:], 0, budget=64, idle_budget=256) == [(readers[-1], 256)]


def test_what_was_forced_is_read_in_one_go_within_the_budget():
    readers = [Reader(1, decodes=True), Reader(7, decodes=True), Reader(100, decodes=True)]
    assert [n for _, n in share_step(readers, 0, budget=64, idle_budget=256)] == [1, 7, 64]


@given(wants=st.lists(st.integers(1, 90), min_size=1, max_size=40), budget=BUDGET)
def test_nobody_is_passed_over_twice_before_all_others_had_a_turn(wants, budget):
    readers = [Reader(want) for want in wants]
    waited = dict.fromkeys(readers, 0)
    step = 0
    while readers:
        served = share_step(readers, step, budget=budget, idle_budget=budget)
        assert served
        for reader in readers:
            waited[reader] += 1
        for reader, count in served:
            reader.wanted -= count
            waited[reader] = 0
        assert max(waited.values()) <= len(wants)
        readers = [reader for reader in readers if reader.wanted]
        step += 1


def test_nothing_is_planned_for_nobody():
    assert share_step([], 0, budget=1, idle_budget=1) == []
