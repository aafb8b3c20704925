"""Warm states from the command line, and renormalised ones."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage
from typer.testing import CliRunner

from langchain_rwkv_state import ChatRWKV
from langchain_rwkv_state.cli import app
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.state import StateLayout, renormalise
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state

TEXT = "My name is Marlow. I live in Lisbon."


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def run(store):
    def call(*words):
        found = CliRunner().invoke(app, [*map(str, words), "--store", str(store.path)])
        assert not isinstance(found.exception, AssertionError)
        return found

    return call


def test_a_text_becomes_a_session_that_others_begin_from(run, store, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    result = run("prefill", "warm", "--file", file)
    assert result.exit_code == 0, result.stderr
    chat = ChatRWKV(model="demo", store=store, temperature=0, prefix_cache=False)
    ref = chat.prefill(TEXT)
    assert store.head("warm") == ref  # one text has one reference
    tokens = store.get(ref).n_tokens
    assert result.stdout.startswith(f"Read {tokens} tokens. The session warm has {tokens} tokens")
    store.fork("warm", "bob")
    question = "What is my name?"
    answer = chat.with_session("bob").invoke(question).content
    assert answer == chat.invoke([marker(ref), HumanMessage(question)]).content
    assert store.head("warm") == ref
    chat.unload()


def test_words_are_read_as_a_file_of_them(run, store, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    run("prefill", "a", "--file", file)
    assert run("prefill", "b", "--words", TEXT).exit_code == 0
    assert store.head("a") == store.head("b")


def test_a_session_that_is_there_is_read_onto_only_where_that_is_asked_for(run, store):
    run("prefill", "warm", "--words", TEXT)
    head, tokens = store.head("warm"), store.get(store.head("warm")).n_tokens
    result = run("prefill", "warm", "--words", " I like figs.")
    assert result.exit_code == 1
    assert "--onto-head" in result.stderr
    assert store.head("warm") == head
    result = run("prefill", "warm", "--words", " I like figs.", "--onto-head")
    assert result.exit_code == 0, result.stderr
    state = store.get(store.head("warm"))
    assert state.n_tokens > tokens
    assert f"Read {state.n_tokens - tokens} tokens. The session warm has {state.n_tokens}" in (
        result.stdout
    )


def test_there_must_be_a_head_to_read_onto(run, store):
    result = run("prefill", "nobody", "--words", TEXT, "--onto-head")
    assert result.exit_code == 1
    assert "no session 'nobody'" in result.stderr
    assert store.head("nobody") is None


@pytest.mark.parametrize("words", [[], ["--words", ""], ["--words", "a", "--file", __file__]])
def test_a_text_is_given_once_and_is_not_empty(run, store, words):
    assert run("prefill", "warm", *words).exit_code == 2
    assert store.head("warm") is None


def test_a_warm_state_has_its_time(run, store):
    assert run("prefill", "warm", "--words", TEXT, "--ttl", "2h").exit_code == 0
    info = store.session("warm")
    assert info is not None
    assert info.expires_seconds - info.updated_seconds == pytest.approx(7200, abs=5)


def test_renormalise_keeps_answers_in_a_new_session(run, store, tiny_model):
    runtime = load_runtime(tiny_model(4), "cpu fp32")
    _, state = runtime.forward([5, 6, 7, 8], runtime.zero_state())
    store.commit("alice", store.stage(state), None)
    assert run("renormalise", "alice", "--into", "same").exit_code == 0
    made = store.get(store.head("same"))
    assert made == renormalise(state)
    assert made != state
    logits = [runtime.forward([9], each)[0] for each in (made, state)]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-5
    runtime.close()
    assert store.get(store.head("alice")) == state
    again = run("renormalise", "same", "--into", "again")
    assert "at a scale of one already" in again.stderr
    assert run("renormalise", "alice", "--into", "same").exit_code == 1


def test_a_state_without_a_scale_comes_back_as_it_is(run, store, tmp_path):
    state = random_state([1], layout=StateLayout.of(7, n_layer=2, n_embd=64, head_size=32))
    store.commit("bob", store.stage(state), None)
    result = run("renormalise", "bob", "--into", str(tmp_path / "bob.safetensors"))
    assert result.exit_code == 0
    assert "An RWKV-7 has no scale beside its matrices" in result.stderr
    assert (tmp_path / "bob.safetensors").exists()


@pytest.mark.parametrize("command", ["prefill", "renormalise"])
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--store" in result.stdout
