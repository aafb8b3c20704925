"""Many calls beside one another: in order within a lane, and ended together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import pytest

from langchain_rwkv_state.conversation import lanes as lanes_module
from langchain_rwkv_state.conversation.lanes import as_completed
from langchain_rwkv_state.engine.request_handle import RequestHandle


def completed(lanes: Sequence[Sequence[int]], call: Any, **options: Any) -> Any:
    return as_completed(lanes, call, {}, **{"return_exceptions": False, **options})


def test_a_lane_is_served_in_its_order():
    found = completed([[0, 2, 4], [1, 3]], lambda at: at * 10)
    places = [at for at, answer in found if answer == at * 10]
    assert [at for at in places if at % 2 == 0] == [0, 2, 4]
    assert [at for at in places if at % 2] == [1, 3]


def test_an_error_is_raised_once_what_is_under_way_has_ended():
    begun, ended = threading.Event(), threading.Event()

    def call(at: int) -> None:
        if at == 0:
            assert begun.wait(20)
            raise ValueError("no")
        begun.set()
        time.sleep(0.05)
        ended.set()

    with pytest.raises(ValueError, match="no"):
        list(completed([[0], [1]], call))
    assert ended.is_set()


def test_a_lane_whose_call_failed_goes_no_further():
    begun = list[int]()

    def call(at: int) -> None:
        begun.append(at)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(completed([[0, 1, 2]], call))
    assert begun == [0]


def test_errors_are_yielded_where_asked_and_the_lane_goes_on():
    def call(at: int) -> int:
        if at == 0:
            raise ValueError("no")
        return at

    found = dict(completed([[0, 1]], call, return_exceptions=True))
    assert isinstance(found[0], ValueError)
    assert found[1] == 1


def endless(begun: threading.Barrier, ended: list[int]) -> Any:
    """Returns a call that waits for a request that nobody serves; the first one returns."""

    def call(at: int) -> int:
        if at == 0:
            return at
        handle = RequestHandle()
        begun.wait(20)
        try:
            handle.result()
        finally:
            ended.append(at)
        return at

    return call


def test_whoever_leaves_early_ends_what_is_under_way_and_no_more_begins():
    begun, ended = threading.Barrier(3), list[int]()
    found = completed([[0], [1, 2], [3]], endless(begun, ended))
    assert next(found) == (0, 0)
    begun.wait(20)
    found.close()
    assert sorted(ended) == [1, 3]


@pytest.mark.parametrize("return_exceptions", [False, True])
def test_whoever_is_interrupted_ends_what_is_under_way(monkeypatch, return_exceptions):
    begun, ended = threading.Barrier(3), list[int]()

    class Pressed(SimpleQueue[Any]):
        def get(self, *args: Any, **kwargs: Any) -> Any:
            begun.wait(20)
            raise KeyboardInterrupt

    monkeypatch.setattr(lanes_module, "SimpleQueue", Pressed)
    call = endless(begun, ended)
    with pytest.raises(KeyboardInterrupt):
        list(completed([[1, 2], [3]], call, return_exceptions=return_exceptions))
    assert sorted(ended) == [1, 3]
