"""A step's numbers on their way to a card and back, through pinned memory that is used in turn."""

from __future__ import annotations

import threading

import torch

from langchain_rwkv_state.runtime.cuda.staging import Ring
from tests.helpers.cuda_stand_in import StandIn


def test_numbers_go_through_a_ring_and_back(card: StandIn) -> None:
    ring = Ring(4 * 8, depth=3)
    inputs, results = torch.zeros(2, 4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    card.holds(inputs, results)
    pending = []
    for step in range(10):
        ring.send([step, step + 1, step + 2], inputs)
        results.copy_(inputs.view(-1)[:4] * 2)
        pending.append(ring.fetch(results[:3]))
    # A result that was not taken in time was copied out before its buffer served again.
    for step, wait in enumerate(pending):
        assert wait().tolist() == [2 * step, 2 * step + 2, 2 * step + 4]
    assert pending[0]().tolist() == [0, 2, 4]


def test_what_another_thread_took_leaves_a_buffer_that_may_be_written(card: StandIn) -> None:
    ring, numbers = Ring(16, depth=1), torch.ones(4, dtype=torch.int32)
    card.holds(numbers)
    pending = ring.fetch(numbers)
    other = threading.Thread(target=pending)
    other.start()
    other.join()
    ring.send([2, 3, 4, 5], numbers)
    assert pending().tolist() == [1, 1, 1, 1]


def test_numbers_do_not_overtake_each_other(card: StandIn) -> None:
    ring, inputs = Ring(16, depth=2), [torch.zeros(4, dtype=torch.int32) for _ in range(6)]
    card.holds(*inputs)
    for step, one in enumerate(inputs):
        ring.send([step] * 4, one)
    assert [one[3].item() for one in inputs] == [*range(6)]


def test_a_result_does_not_wait_for_later_work(card: StandIn) -> None:
    ring = Ring(16)
    results = torch.ones(4, dtype=torch.int32)
    later = torch.ones(4, dtype=torch.int32)
    card.holds(results, later)
    work = card.current_stream()
    wait = ring.fetch(results)
    at = card.clock(work.name)[work.name]
    later.mul_(2)
    wait()
    assert card.clock(card.host)[work.name] == at < card.clock(work.name)[work.name]
    assert card.syncs == 0
