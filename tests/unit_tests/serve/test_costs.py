"""What answers cost that were left."""

import pytest

from langchain_rwkv_state.engine import Delta, Request
from langchain_rwkv_state.serve.costs import Cost
from langchain_rwkv_state.state import StateLayout, zero_state
from tests.helpers.one_tenant import Spent

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ([], []),  # it waited, and nothing was read
        ([300], []),  # all of which the cache may have had
        ([300, 500, 700], [(1010, 610, 0)]),
    ],
)
def test_whoever_leaves_while_the_prompt_is_read_is_counted_what_was(seen, told):
    usage = Spent()
    with Cost(usage, 10, 1000) as cost:
        request = cost.watching(Request(zero_state(LAYOUT, "m"), range(1000)))
        assert request.on_progress is not None
        for at in seen:
            request.on_progress(at, 1000)
    assert usage.answers == told


def test_of_an_answer_that_had_begun_all_of_the_prompt_counts():
    usage = Spent()
    with Cost(usage, 10, 1000) as cost:
        request = cost.watching(Request(zero_state(LAYOUT, "m"), range(1000)))
        assert request.on_progress is not None
        for at in (500, 1000):
            request.on_progress(at, 1000)
        cost.count([Delta("a"), Delta("b")])
    assert usage.answers == [(1010, 10, 2)]
