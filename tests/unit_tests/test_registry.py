"""The registry: loaded once, counted, freed by the last, from any thread and any finaliser."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from langchain_rwkv_state import _fork
from langchain_rwkv_state._registry import Registry


class Value:
    """Something that can be weakly referenced."""


def test_users_of_one_key_share_one_value() -> None:
    registry: Registry[Value] = Registry()
    first, give_back = registry.hold("a", Value)
    second, give_back_too = registry.hold("a", Value)
    other, _ = registry.hold("b", Value)
    assert first is second
    assert first is not other
    give_back()
    assert len(registry) == 2
    give_back_too()
    assert len(registry) == 1


def test_the_last_user_frees_the_value() -> None:
    freed: list[int] = []
    registry: Registry[Value] = Registry(lambda: freed.append(1))
    value, first = registry.hold("a", Value)
    gone = weakref.ref(value)
    del value
    second = registry.hold("a", Value)[1]
    first()
    assert gone() is not None
    assert not freed
    second()
    assert gone() is None
    assert freed == [1]
    assert registry.hold("a", Value)[0] is not None


def test_those_who_come_while_it_loads_wait_for_it() -> None:
    registry: Registry[Value] = Registry()
    made: list[Value] = []

    def slowly() -> Value:
        time.sleep(0.05)
        made.append(Value())
        return made[-1]

    found: list[Value] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.hold("a", slowly)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == made * 8


def test_another_key_does_not_wait() -> None:
    registry: Registry[int] = Registry()
    loading, done = threading.Event(), threading.Event()

    def endless() -> int:
        loading.set()
        assert done.wait(60)
        return 1

    thread = threading.Thread(target=registry.hold, args=("slow", endless))
    thread.start()
    assert loading.wait(60)
    assert registry.hold("quick", lambda: 2)[0] == 2
    done.set()
    thread.join()


def test_a_failed_load_leaves_nothing_and_can_be_tried_again() -> None:
    registry: Registry[int] = Registry()
    with pytest.raises(ZeroDivisionError):
        registry.hold("a", lambda: 1 // 0)
    assert len(registry) == 0
    assert registry.hold("a", lambda: 3)[0] == 3


def test_giving_back_inside_the_lock_neither_blocks_nor_is_lost() -> None:
    """The collector may run a finaliser in the thread that holds the lock."""
    registry: Registry[Value] = Registry()
    give_back = registry.hold("a", Value)[1]
    with registry._lock:
        give_back()
        assert len(registry) == 1
    registry.hold("b", Value)
    assert len(registry) == 1


def test_many_threads_count_right() -> None:
    registry: Registry[Value] = Registry()

    def work() -> None:
        for _ in range(200):
            value, give_back = registry.hold("a", Value)
            assert value is not None
            give_back()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry) == 0


def test_a_forked_child_has_no_lock_that_nobody_will_release() -> None:
    registry: Registry[int] = Registry()
    registry.hold("loaded", lambda: 1)
    loading, done = threading.Event(), threading.Event()

    def endless() -> int:
        loading.set()
        assert done.wait(60)
        return 1

    thread = threading.Thread(target=registry.hold, args=("loading", endless))
    thread.start()
    assert loading.wait(60)
    child: Registry[int] = Registry()
    child._slots = dict(registry._slots)
    child._lock.acquire()
    child.after_fork()
    assert child.hold("loaded", lambda: 2)[0] == 1
    assert child.hold("loading", lambda: 2)[0] == 2
    done.set()
    thread.join()


def test_a_fork_that_waited_for_another_one_holds_nobody_up() -> None:
    waits, goes_on = threading.Event(), threading.Event()

    def fork_too() -> None:
        _fork._before_fork()
        waits.set()
        goes_on.wait(10)
        _fork._after_fork_in_parent()

    found: list[bool] = []
    second = threading.Thread(target=fork_too)
    asks = threading.Thread(
        target=lambda: found.append(_fork.done_before_a_fork(lambda: None)), daemon=True
    )
    _fork._before_fork()
    second.start()
    time.sleep(0.05)  # it waits for the first
    _fork._after_fork_in_parent()
    assert waits.wait(10)
    asks.start()
    asks.join(2)
    goes_on.set()
    second.join()
    assert found == [False]
