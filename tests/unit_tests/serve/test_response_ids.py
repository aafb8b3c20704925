"""Ids of responses: names that no state's digits stand in."""

from __future__ import annotations

import math

import pytest

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.response_ids import ResponseId, state_of
from langchain_rwkv_state.state import StateLayout, zero_state

NOW = 1_796_000_000.5


@pytest.fixture
def store():
    with MemoryStateStore() as store:
        yield store


def kept(store, seconds=60.0):
    ref = store.stage(zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "m"))
    known = ResponseId.new(NOW, seconds)
    store.keep(ref, known.owner)
    return known, ref


@pytest.mark.parametrize("seconds", [None, 1, 1e12, math.inf])
def test_an_id_is_read_as_it_was_written_and_no_two_are_the_same(seconds):
    one, other = ResponseId.new(NOW, seconds), ResponseId.new(NOW, seconds)
    assert ResponseId.parse(str(one)) == one != other
    assert str(one).startswith("resp_")


async def test_an_id_stands_for_the_state_that_is_held_for_it(store):
    known, ref = kept(store)
    assert await state_of(store, str(known), NOW) == ref
    assert ref.removeprefix("rwkv1-") not in str(known)


async def test_what_is_held_is_there_whatever_time_the_id_says(store):
    known, ref = kept(store)
    assert await state_of(store, str(known), NOW + 1e9) == ref


async def test_of_two_ids_with_one_state_the_other_lives_on(store):
    (one, ref), (other, same) = kept(store), kept(store)
    assert ref == same
    store.release(one.owner)
    assert await state_of(store, str(other), NOW) == ref
    with pytest.raises(ApiError, match="deleted, or never was"):
        await state_of(store, str(one), NOW)


@pytest.mark.parametrize(
    ("seconds", "later", "code"),
    [(60, 59, "not_found"), (60, 61, "expired"), (math.inf, 1e12, "not_found")],
)
async def test_an_id_that_ran_out_is_told_from_one_that_never_was(store, seconds, later, code):
    with pytest.raises(ApiError) as caught:
        await state_of(store, str(ResponseId.new(NOW, seconds)), NOW + later, param="p")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, code, "p")


async def test_an_id_whose_state_was_not_to_be_kept_says_so(store):
    with pytest.raises(ApiError, match="store=false") as caught:
        await state_of(store, str(ResponseId.new(NOW, None)), NOW)
    assert (caught.value.status, caught.value.code) == (404, "not_found")


@pytest.mark.parametrize("given", ["", "resp_", "resp_" + "g" * 40, "rwkv1-" + "0" * 64, "é"])
async def test_a_text_that_is_no_id_is_named(store, given):
    with pytest.raises(ApiError, match="no id of a response") as caught:
        await state_of(store, given, NOW, param="previous_response_id")
    assert (caught.value.status, caught.value.param) == (400, "previous_response_id")
    with pytest.raises(ApiError) as caught:
        await state_of(store, given, NOW)
    assert caught.value.status == 404
