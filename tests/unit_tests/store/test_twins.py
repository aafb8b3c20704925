"""The async twins: made of the verbs, and as plain to who asks for help."""

from __future__ import annotations

import inspect

import pytest

from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, StateStore
from langchain_rwkv_state.store.verbs import AsyncVerbs, StoreVerbs, twin

TWINS = sorted(
    name
    for name in dir(StateStore)
    if name.startswith("a") and name != "append_unread" and hasattr(StateStore, name[1:])
)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_its_verbs_signature_and_says_whose_it_is(name):
    made, verb = getattr(StateStore, name), getattr(StateStore, name[1:])
    assert inspect.iscoroutinefunction(made)
    assert inspect.signature(made) == inspect.signature(verb)
    assert made.__name__ == name
    assert made.__doc__.startswith(f"Async twin of `{name[1:]}`")


@pytest.mark.parametrize("name", sorted(StoreVerbs.__abstractmethods__))
def test_help_on_a_stores_verb_tells_what_every_store_promises(name):
    told = inspect.getdoc(getattr(DiskStateStore, name))
    assert told is not None
    assert told == inspect.getdoc(getattr(StoreVerbs, name))


async def test_a_twin_runs_what_the_object_has_under_the_verbs_name():
    class Louder(MemoryStateStore):
        def sessions(self, prefix: str = "") -> list[str]:
            return [f"{prefix}!"]

    async with Louder() as store:
        assert await store.asessions("bob") == ["bob!"]
        with pytest.raises(TypeError, match="unexpected keyword"):
            await store.asessions(nonsense=1)  # type: ignore[call-arg] # mypy knows, too


def test_a_twin_of_a_verb_of_ones_own():
    class Counting(AsyncVerbs):
        def count(self, by: int = 1) -> int:
            """Counts."""
            return by

        acount = twin(count)

    assert Counting.acount.__qualname__.endswith("Counting.acount")
