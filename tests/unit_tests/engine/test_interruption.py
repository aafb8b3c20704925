"""Work of many threads ends together where it is interrupted; other work is left alone."""

from __future__ import annotations

import gc
import threading
import weakref
from contextvars import copy_context

import pytest

from langchain_rwkv_state.engine.interruption import Interruption, join, raise_if_interrupted
from langchain_rwkv_state.engine.request_handle import RequestHandle


def test_requests_of_its_context_end_and_others_do_not():
    interruption = Interruption()

    def inside() -> RequestHandle:
        interruption.take_part()
        return RequestHandle()

    mine, other = copy_context().run(inside), RequestHandle()
    interruption.interrupt()
    assert (mine.over, other.over) == (True, False)
    with pytest.raises(KeyboardInterrupt):
        mine.result()
    with pytest.raises(KeyboardInterrupt):
        next(iter(mine))


def test_what_begins_after_it_ends_at_once():
    interruption = Interruption()
    interruption.interrupt()

    def inside() -> None:
        interruption.take_part()
        with pytest.raises(KeyboardInterrupt):
            RequestHandle().result()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()

    copy_context().run(inside)
    raise_if_interrupted()


def test_of_one_work_within_another_both_end():
    outer = Interruption()

    def inside() -> RequestHandle:
        outer.take_part()
        inner = Interruption()
        inner.take_part()
        kept.append(inner)
        return RequestHandle()

    kept: list[Interruption] = []
    handle = copy_context().run(inside)
    outer.interrupt()
    assert handle.over


def test_a_wait_in_another_thread_ends():
    interruption, begun = Interruption(), threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        interruption.take_part()
        handle = RequestHandle()
        begun.set()
        try:
            handle.result()
        except KeyboardInterrupt as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(20)
    interruption.interrupt()
    thread.join(20)
    assert ended


def test_it_keeps_no_request():
    interruption = Interruption()

    def inside() -> weakref.ref[RequestHandle]:
        interruption.take_part()
        handle = RequestHandle()
        join(handle)
        return weakref.ref(handle)

    found = copy_context().run(inside)
    gc.collect()
    assert found() is None
