from __future__ import annotations

import pytest

from langchain_rwkv_state.state import StateLayout, memory, zero_state


def test_a_state_costs_what_it_holds_whatever_the_context():
    for layout in (
        StateLayout.of(4, n_layer=3, n_embd=64),
        StateLayout.of(7, n_layer=3, n_embd=64, head_size=32),
    ):
        for context in (0, 1_000, 1_000_000):
            assert memory(layout, context).state == zero_state(layout, "model").nbytes


def test_a_cache_is_two_vectors_a_layer_and_token():
    layout = StateLayout.of(7, n_layer=32, n_embd=4096, head_size=64)
    found = memory(layout, 1000, heads_a_group=8)
    assert found.cache == 32 * 2 * 4096 * 2 * 1000
    assert found.grouped * 8 == found.cache
    assert memory(layout, 0).cache == 0
    for wrong in ({"context": -1}, {"bytes_a_number": 0}, {"heads_a_group": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            memory(layout, **{"context": 1, **wrong})


def test_sizes_in_numbers_are_not_sizes_in_bytes():
    """`4 * layers * width` numbers is what is often given as the bytes of an RWKV-4 state."""
    layout = StateLayout.of(4, n_layer=12, n_embd=768)
    assert 4 * 12 * 768 == 36_864  # "37 KB"
    assert memory(layout, 1).state == 5 * 36_864


def test_whatever_has_a_layout_can_be_asked():
    layout = StateLayout.of(5, n_layer=3, n_embd=64, head_size=32)
    assert memory(zero_state(layout, "model"), 500) == memory(layout, 500)
