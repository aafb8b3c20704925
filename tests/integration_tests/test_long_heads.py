"""What the page on half-lives says of the demo model: its two long heads carry the facts."""

from __future__ import annotations

import itertools

from langchain_core.messages import HumanMessage

from langchain_rwkv_state import ChatRWKV, MemoryStateStore, RWKVState
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.runtime import half_life

NAMES = (
    *("Beatrice", "Orson", "Mirabel", "Zoltan", "Petra"),
    *("Quentin", "Ingrid", "Rufus", "Selma", "Tobias"),
)


def without(state, layer, head):
    """Returns the state with one head's matrix emptied."""
    tensors = {name: state[name].clone() for name in state}
    tensors[f"blocks.{layer}.att_kv"][head] = 0
    return RWKVState(state.layout, tensors, state.derivation.rooted(f"{layer}.{head}"))


def test_names_are_lost_with_a_long_head_and_with_no_other():
    medians = half_life("demo").medians
    heads = list(itertools.product(range(6), range(2)))
    long = {(layer, head) for layer, head in heads if float(medians[layer][head]) > 100}
    assert long == {(3, 0), (4, 0)}
    chat = ChatRWKV(model="demo", temperature=0, store=MemoryStateStore(), prefix_cache=False)
    right = dict.fromkeys(heads, 0)
    for name in NAMES:
        talk = chat.with_session(name)
        told = talk.invoke(f"My name is {name}.").response_metadata["rwkv_state"]
        for layer, head in heads:
            ref = chat.store.put(without(chat.store.get(told), layer, head))
            answer = chat.invoke([marker(ref), HumanMessage("What is my name?")])
            right[layer, head] += name in answer.content
    chat.unload()
    assert right == {place: 0 if place in long else len(NAMES) for place in heads}
