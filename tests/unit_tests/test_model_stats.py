"""A model's figures: what they are, that asking loads nothing, and a watch that tells of them."""

import gc
import logging
import threading
import time
import weakref
from dataclasses import asdict

import pytest

from langchain_rwkv_state.model_stats import ModelStats, StatsWatch

OWN = "native cpu fp32"  # a model of the test's own: the other tests hold one as "auto"


def figures(**more):
    return ModelStats("demo", "native cpu fp32", loaded=True, **more)


# -- the figures -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
def test_asking_loads_nothing_and_says_so(make, request):
    model = request.getfixturevalue(make)(7, strategy="package cpu fp32")
    found = model.stats()
    assert not found.loaded
    assert (found.strategy, found.active, found.prompt_tokens) == ("package cpu fp32", 0, 0)
    assert "is not loaded" in str(found)
    assert model._loaded is None


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
def test_the_figures_are_the_engines_and_the_caches(make, request):
    from langchain_rwkv_state import PrefixStateCache

    model = request.getfixturevalue(make)(7, max_tokens=3, prefix_cache=PrefixStateCache())
    for _ in range(2):
        model.invoke("One two three four.")
    found = model.stats()
    engine = model.loaded().engine.stats()
    assert found.loaded
    assert found.strategy == "native cpu fp32"
    assert found.prompt_tokens == engine.prompt_tokens > 0
    assert found.decoded_tokens == engine.decoded_tokens > 0
    assert found.first_token_p50 is not None
    assert (found.cache_lookups, found.cache_hits) == (2, 1)
    assert found.cache_tokens_saved > 0
    assert found.cache_bytes > 0
    line = str(found)
    assert "\n" not in line
    assert "native cpu fp32" in line
    assert "cache hits 1/2" in line


def test_the_figures_are_asked_without_a_look_at_other_tenants_of_the_cache(make_chat, monkeypatch):
    from langchain_rwkv_state import PrefixStateCache
    from langchain_rwkv_state.prefix_cache import Namespace
    from langchain_rwkv_state.prefix_cache import cache as module

    cache = PrefixStateCache()
    chat = make_chat(7, max_tokens=1, prefix_cache=cache)
    chat.invoke("One two three four.")
    assert cache.lookup(Namespace("another model"), (1, 2, 3)) is None
    monkeypatch.setattr(module, "cause_elsewhere", lambda *_, **__: pytest.fail("It looked."))
    assert chat.stats().cache_lookups == 2
    assert cache.stats(causes=False).misses["cold"] == 2


def test_without_a_cache_its_figures_are_zero(make_chat):
    chat = make_chat(7, max_tokens=1, prefix_cache=False)
    chat.invoke("Hi.")
    assert chat.stats().cache_lookups == 0


def test_an_object_that_did_not_load_sees_the_model_that_another_one_did(make_chat):
    chat = make_chat(7, max_tokens=1, strategy=OWN)
    chat.invoke("Hi.")
    copied = chat.model_copy()
    assert copied.stats() == chat.stats()
    assert copied._loaded is None
    chat.unload()
    assert not copied.stats().loaded


def test_all_figures_are_plain_values():
    assert all(
        value is None or isinstance(value, str | bool | int | float)
        for value in asdict(figures()).values()
    )


# -- the watch -------------------------------------------------------------------------------


def test_a_watch_calls_time_and_again_and_once_more_at_its_end():
    told, enough = [], threading.Event()

    def callback(found):
        told.append(found)
        if len(told) == 3:
            enough.set()

    with StatsWatch(lambda: figures(steps=len(told)), callback, every_seconds=0.005) as watch:
        assert enough.wait(30)
    count = len(told)
    assert [each.steps for each in told] == list(range(count))
    watch.close()
    time.sleep(0.02)
    assert len(told) == count


def test_a_short_life_is_told_of_too():
    told: list[ModelStats] = []
    with StatsWatch(figures, told.append, every_seconds=3600):
        pass
    assert told == [figures()]


def test_a_callback_that_fails_is_logged_once_and_called_on(caplog):
    calls, enough = [], threading.Event()

    def callback(found):
        calls.append(found)
        if len(calls) == 3:
            enough.set()
        raise RuntimeError("no such gauge")

    with StatsWatch(figures, callback, every_seconds=0.005):
        assert enough.wait(30)
    records = [each for each in caplog.records if each.name == "langchain_rwkv_state.stats"]
    assert len(records) == 1
    assert "no such gauge" in caplog.text


def test_a_watch_can_be_closed_in_its_own_callback():
    watches: list[StatsWatch] = []
    done = threading.Event()

    def callback(_):
        watches[0].close()
        done.set()

    watches.append(StatsWatch(figures, callback, every_seconds=0.05))
    assert done.wait(30)


def test_a_watch_does_not_keep_the_model(make_chat):
    chat = make_chat(7)
    told: list[ModelStats] = []
    watch = chat.model_copy().watch_stats(told.append, every_seconds=0.005)
    gc.collect()
    watch._thread.join(30)
    assert not watch._thread.is_alive()
    watch.close()


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
def test_a_model_is_watched(make, request):
    model = request.getfixturevalue(make)(7, max_tokens=2)
    told: list[ModelStats] = []
    with model.watch_stats(told.append, every_seconds=3600):
        model.invoke("Hi.")
    [found] = told
    assert found.loaded
    assert found.decoded_tokens > 0


def test_what_cannot_be_called_is_refused(make_chat):
    with pytest.raises(TypeError, match="cannot be called"):
        make_chat(7).watch_stats("log", every_seconds=1)

    async def tell(_: object) -> None:
        """Would never be awaited."""

    with pytest.raises(TypeError, match="plain function"):
        make_chat(7).watch_stats(tell, every_seconds=1)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "10", True])
def test_seconds_are_above_zero(seconds, make_chat):
    with pytest.raises((ValueError, TypeError), match="above zero"):
        make_chat(7).watch_stats(print, every_seconds=seconds)


def test_the_object_behind_a_watch_can_be_collected_while_the_watch_is_kept(make_chat):
    chat = make_chat(7)
    copied = chat.model_copy()
    seen = weakref.ref(copied)
    watch = copied.watch_stats(lambda _: None, every_seconds=3600)
    del copied
    gc.collect()
    assert seen() is None
    watch.close()


# -- the log ---------------------------------------------------------------------------------


def test_loading_is_logged_as_what_it_came_to(make_chat, caplog):
    chat = make_chat(7, strategy=OWN)
    with caplog.at_level(logging.DEBUG, "langchain_rwkv_state"):
        chat.invoke("Hi.", max_tokens=1)
        chat.unload()
    said = [(each.levelname, each.getMessage()) for each in caplog.records]
    [loaded] = [text for level, text in said if level == "INFO" and text.startswith("Loaded ")]
    assert loaded.startswith(f"Loaded {chat.model} as native cpu fp32 in ")
    assert loaded.endswith(" s")
    assert ("DEBUG", f"Let go of {chat.model}") in said
    assert ("DEBUG", "The worker starts") in said


def test_the_package_of_rwkv_is_named_by_its_strategy(make_chat, caplog):
    chat = make_chat(6, strategy="package cpu fp32")
    with caplog.at_level(logging.INFO, "langchain_rwkv_state"):
        chat.loaded()
    assert " as package cpu fp32 in " in caplog.text


def test_the_package_leaves_it_to_the_program_what_is_shown():
    ours = [
        name for name in logging.root.manager.loggerDict if name.startswith("langchain_rwkv_state.")
    ]
    assert "langchain_rwkv_state.loaded" in ours
    for name in ours:
        logger = logging.getLogger(name)
        assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True), name
