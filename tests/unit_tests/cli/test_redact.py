"""The commands ``transcript`` and ``redact``, with the built-in model."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from typer.testing import CliRunner

from langchain_rwkv_state import ChatRWKV, DiskStateStore, PrefixStateCache
from langchain_rwkv_state.cli import app
from tests.helpers.found import forms_of_ids, found_in

FACTS = ("My name is Marlow.", "My dog is called Rex.", "I live in Paris.")


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store", log="tokens", history=2) as opened:
        chat = ChatRWKV(model="demo", store=opened, temperature=0, max_tokens=24)
        for text in FACTS:
            chat.with_session("bob").invoke(text)
        opened.keep(opened.fork("bob", "al"), "thread:1")
        yield opened
        chat.unload()


@pytest.fixture
def run(store, tmp_path):
    def call(*words):
        places = ["--store", str(store.path)]
        if words[0] == "redact":
            places += ["--cache", str(tmp_path / "prefixes")]
        return CliRunner().invoke(app, [*map(str, words), *places])

    return call


def test_what_was_said_is_printed_with_the_numbers_of_the_turns(run):
    found = run("transcript", "bob")
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert [line for line in lines if line.isdigit()] == ["1", "2", "3"]
    assert [f"User: {text}" for text in FACTS] == [x for x in lines if x.startswith("User")]


def test_a_turn_is_taken_out_of_a_session_and_of_all_that_stands_on_it(run, store):
    done = run("redact", "bob", "--turn", "2")
    assert (done.exit_code, done.stdout) == (
        0,
        "Took 1 turn out of bob: 2 turns.\nAnd out of al.\nNo longer kept for thread:1.\n",
    )
    assert "Bundles and backups that were made before hold these turns still." in done.stderr
    assert "Rex" not in run("transcript", "bob").stdout
    assert [entry.kept for entry in store.log("bob")] == [True, True], "as many as a program keeps"
    more = run("redact", "bob", "-t", "1", "-t", "2")
    assert more.stdout.startswith("Took 2 turns out of bob: 0 turns.\n")
    assert store.check().problems == ()


def test_the_prefix_cache_on_disk_is_told(run, store, tmp_path):
    chat = ChatRWKV(
        model="demo",
        store=store,
        prefix_cache=(cache := PrefixStateCache(disk=tmp_path / "prefixes")),
        temperature=0,
        max_tokens=24,
    )
    said = [HumanMessage(FACTS[0]), AIMessage("Nice to meet you, Marlow."), HumanMessage(FACTS[1])]
    chat.invoke([*said, chat.invoke(said), HumanMessage("What is my name?")])
    cache.close()
    ids = [n for s in chat.loaded().template.segments([said[2]], start=False) for n in s.ids]
    chat.unload()
    assert found_in(tmp_path / "prefixes", forms_of_ids(ids)) != []
    assert run("redact", "bob", "--turn", "2").exit_code == 0
    assert found_in(tmp_path, forms_of_ids(ids)) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("redact", "bob", "--turn", "9"), "has turns 1 to 3, and 9 is none of them"),
        (("redact", "cy", "--turn", "1"), "There is no session 'cy'"),
        (("transcript", "cy"), "There is no session 'cy'"),
        (("redact", "bob"), "Missing option '--turn'"),
        (("redact", "bob", "--turn", "0"), "should be greater than or equal to 1"),
    ],
)
def test_what_is_not_there_is_named(run, words, said):
    found = run(*words)
    assert found.exit_code != 0
    assert said in " ".join(found.stderr.replace("│", " ").split())
