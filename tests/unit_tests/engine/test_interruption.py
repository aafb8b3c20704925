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

    with interruption.part():
        mine = RequestHandle()
    other = RequestHandle()
    interruption.interrupt()
    assert (mine.over, other.over) == (True, False)
    with pytest.raises(KeyboardInterrupt):
        mine.result()
    with pytest.raises(KeyboardInterrupt):
        next(iter(mine))


def test_what_begins_after_it_ends_at_once():
    interruption = Interruption()
    interruption.interrupt()

    with interruption.part():
        with pytest.raises(KeyboardInterrupt):
            RequestHandle().result()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    raise_if_interrupted()


def test_a_context_that_outlives_its_part_is_left_alone():
    interruption = Interruption()
    with interruption.part():
        context = copy_context()
    interruption.interrupt()
    context.run(raise_if_interrupted)
    assert not context.run(RequestHandle).over


def test_of_one_work_within_another_both_end():
    outer = Interruption()
    with outer.part():
        inner = Interruption()
        with inner.part():
            handle = RequestHandle()
    outer.interrupt()
    assert inner.happened
    assert handle.over


def test_a_wait_in_another_thread_ends():
    interruption, begun = Interruption(), threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        with interruption.part():
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
    with interruption.part():
        handle = RequestHandle()
        join(handle)
    found = weakref.ref(handle)
    del handle
    gc.collect()
    assert found() is None
