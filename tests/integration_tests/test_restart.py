"""A conversation outlives its process, and goes on as if there had been only one."""

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage

from langchain_rwkv_state import DiskStateStore
from tests.helpers.elsewhere import turn_elsewhere
from tests.helpers.law import assert_close, next_token, read_once


@pytest.mark.parametrize("version", [4, 5.2, 6, 7])
def test_a_state_read_in_another_process_is_the_same(version, make_chat, tmp_path):
    path = tmp_path / "states"
    with DiskStateStore(path) as store:
        chat = make_chat(version, store=store, max_tokens=8)
        bob = chat.with_session("bob")
        first = bob.invoke("My name is Zanzibar. שלום 👋")
        told = bob.head
    transcript = [HumanMessage("My name is Zanzibar. שלום 👋"), AIMessage(first.content)]
    there = turn_elsewhere(
        model=chat.model, store=str(path), session="bob", text="What is my name?", max_tokens=8
    )
    assert there["before"] == told
    here = next_token(chat, read_once(chat, transcript))[0]
    assert_close(here, torch.tensor(there["next"]))
    transcript += [HumanMessage("What is my name?"), AIMessage(there["text"])]
    with DiskStateStore(path) as store:
        assert store.head("bob") == there["head"]
        assert store.get(there["head"]).derivation == read_once(chat, transcript).derivation


def test_the_demo_model_recalls_what_another_process_was_told(demo, tmp_path):
    where = {"model": "demo", "store": str(tmp_path / "states"), "session": "bob"}
    first = turn_elsewhere(**where, text="My name is Zanzibar.")
    assert first["before"] is None
    second = turn_elsewhere(**where, text="What is my name?")
    assert second["before"] == first["head"]
    assert "Zanzibar" in second["text"]
    in_one_process = demo.with_session("bob")
    in_one_process.invoke("My name is Zanzibar.")
    assert in_one_process.invoke("What is my name?").content == second["text"]
