"""Work of many threads ends together where it is interrupted; other work is left alone."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from types import CodeType
from typing import Any

import pytest

from langchain_rwkv_state.engine.interruption import Interruption, join, raise_if_interrupted
from langchain_rwkv_state.engine.request_handle import RequestHandle
from tests.helpers.scripted import scripted


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


def interrupted_after(code: CodeType, work: Callable[[], Any]) -> None:
    """Does work, in which Ctrl-C comes whenever this code returns, if it ever does."""

    def come(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            raise KeyboardInterrupt

    sys.setprofile(come)
    try:
        with suppress(KeyboardInterrupt):
            work()
    finally:
        sys.setprofile(None)


def others_can(work: Callable[[], object]) -> bool:
    """Says whether another thread can do something, and need not wait for a lock for good."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_ctrl_c_as_a_lock_is_taken_leaves_it_free(engine):
    """A condition is entered in Python, so that Ctrl-C may come once it has its lock."""
    handle = RequestHandle()
    handle.interrupt()
    entering = threading.Condition.__enter__.__code__
    interrupted_after(entering, handle.result)
    assert others_can(handle.cancel), "the engine would wait for it, and everybody for the engine"
    interrupted_after(entering, engine.stats)
    assert others_can(engine.stats)


def test_ctrl_c_as_the_worker_starts_leaves_one_worker(engine, runtime):
    request = scripted(runtime, [1, 2], [33])
    before = threading.enumerate()
    interrupted_after(threading.Thread.start.__code__, lambda: engine.submit(request))
    lone = [each for each in threading.enumerate() if each not in before]
    assert engine.submit(request).result().text
    for each in lone:
        each.join(10)
        assert not each.is_alive(), "two would run the same sequences"
