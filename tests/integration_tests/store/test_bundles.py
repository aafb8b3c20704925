"""A conversation moves to another store, in another process, and is the same conversation."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from langchain_rwkv_state import DiskStateStore, RWKVState
from tests.helpers.carried import carried_elsewhere
from tests.helpers.states import SetClock, head_of, turns

ROOT = Path(__file__).parents[3]
DAY = 86400.0


def test_a_conversation_goes_on_in_another_store_in_another_process(make_chat, tmp_path):
    told = ["My name is Zanzibar.", "I live in Lisbon.", "I like tea."]
    asked = ["What is my name?", "Where do I live?"]
    with DiskStateStore(tmp_path / "here", history=2) as store:
        demo = make_chat("demo", store=store, max_tokens=48)
        bob = demo.with_session("bob")
        for text in told:
            bob.invoke(text)
        head, log = store.head("bob"), store.log("bob")
        store.export_session("bob", tmp_path / "bob.zip")
        there = carried_elsewhere(
            model="demo",
            store=str(tmp_path / "there"),
            bundle=str(tmp_path / "bob.zip"),
            texts=asked,
            state=str(tmp_path / "head.safetensors"),
        )
        assert there["session"] == "bob"
        assert there["head"] == there["log"][0]["ref"] != head
        assert RWKVState.load(tmp_path / "head.safetensors") == head_of(store, "bob")
        facts = ("n_tokens", "created_seconds", "kept")
        assert [[each[fact] for fact in facts] for each in there["log"]] == [
            [getattr(each, fact) for fact in facts] for each in log
        ]
        assert [each.kept for each in log] == [True, True, True]
        names = dict(zip([each.ref for each in log], there["log"], strict=True))
        for each in log:
            parent = names[each.ref]["parent"]
            assert parent == (names[each.parent]["ref"] if each.parent else None)
        assert [bob.invoke(text).content for text in asked] == there["answers"]
        assert "Zanzibar" in there["answers"][0]
        assert "Lisbon" in there["answers"][1]
    with DiskStateStore(tmp_path / "there") as other, DiskStateStore(tmp_path / "here") as store:
        assert head_of(other, "bob") == head_of(store, "bob")
        assert other.check().sound


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_an_import_that_is_killed_anywhere_leaves_no_session_and_in_time_no_bytes(tmp_path):
    with DiskStateStore(tmp_path / "source", history=2) as source:
        turns(source, "bob", 3)
        source.append_unread("bob", ['"x"'])
        source.export_session("bob", tmp_path / "bob.zip")
    stores = tmp_path / "stores"
    stores.mkdir()
    command = [sys.executable, "-m", "tests.helpers.killed_import"]
    done = subprocess.run(
        [*command, str(tmp_path / "bob.zip"), str(stores)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    assert killed >= 14, "three states and a session, before and after each step"
    whole = 0
    for number in range(killed):
        whole += _judge(stores / str(number))
    assert 0 < whole < killed
    with DiskStateStore(stores / str(killed)) as store:
        assert len(store.log("bob")) == 3


def _judge(path) -> bool:
    """Checks what a killed import left; says whether it was the whole session."""
    clock = SetClock(time.time())
    with DiskStateStore(path, clock=clock) as store:
        info = store.session("bob")
        clock.advance(2 * 3600)
        store.prune()
        for file in path.glob("??/*.safetensors"):
            os.utime(file, (time.time() - 120, time.time() - 120))
        store.check(fix=True)
        assert store.check().sound
        files = list(path.glob("??/*.safetensors"))
        if info is not None:
            assert (info.n_turns, info.unread) == (3, ('"x"',))
            assert [store.get(entry.ref).n_tokens for entry in store.log("bob")] == [6, 5, 4]
            assert store.stats().states == len(files) == 3
            return True
        assert (store.sessions(), store.stats().states, files) == ([], 0, [])
        clock.advance(8 * DAY)
        store.prune()
        left = store.stats().nbytes
    with DiskStateStore(path.with_suffix(".new"), clock=clock) as fresh:
        fresh.release("nobody")  # a first transaction notes the clock
        assert left == fresh.stats().nbytes
    return False
