"""Where on a prompt states are kept: few positions, and the right ones."""

from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.prefix_cache.prefix import snapshot_positions


def test_the_end_is_kept_and_the_system_prompt():
    assert snapshot_positions([6, 11, 15], start=0, stop=15, first=[6]) == (6, 15)


def test_ends_that_lie_close_together_are_not():
    assert snapshot_positions([40, 44, 90, 95], start=0, stop=100) == (44, 100)


def test_a_long_way_has_states_in_between():
    found = snapshot_positions([], start=0, stop=1200, every=512)
    assert found == (512, 944, 1072, 1136, 1168, 1200)


def test_a_document_is_kept_at_growing_distances_from_its_end():
    """Whatever the length of the question at its end, little is read again with another."""
    document, start = 700, 20
    for question in range(4, 250, 7):
        end = start + document + question
        found = snapshot_positions([start, end], start=0, stop=end + 3, first=[start])
        reused = max(at for at in found if at <= start + document)
        assert start + document - reused <= max(32, question)


def test_a_system_prompt_is_no_document_with_a_question():
    assert snapshot_positions([500, 520], start=0, stop=523, first=[500]) == (500, 523)


def test_nothing_before_the_start():
    assert snapshot_positions([10, 50], start=50, stop=90, first=[10]) == (90,)


def test_nothing_to_read_needs_nothing():
    assert snapshot_positions([10], start=10, stop=10) == ()


@given(
    st.lists(st.integers(0, 5000)).map(sorted),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.sets(st.integers(0, 5000), max_size=3),
)
def test_they_are_few_in_order_and_inside(ends, start, length, first):
    found = snapshot_positions(ends, start=start, stop=start + length, first=first)
    assert list(found) == sorted(set(found))
    assert len(found) <= 9
    assert all(start < at <= start + length for at in found)
    assert {at for at in first if start < at < start + length} <= set(found)
