"""Turns of one session from several processes: none is lost, and they come in their order."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from langchain_core.messages import HumanMessage

from langchain_rwkv_state import DiskStateStore
from langchain_rwkv_state.conversation.session import RWKVSession
from tests.helpers.fake_chat import FakeChat
from tests.helpers.queue_campaign import ROOT, campaign


@pytest.mark.parametrize(("processes", "threads"), [(2, 1), (3, 2)])
def test_turns_of_many_processes_are_all_in_the_session(tmp_path, processes, threads):
    result = campaign(tmp_path / "states", processes=processes, turns=20, threads=threads)
    assert result.committed == result.turns == 20 * processes * threads
    assert result.overtaken <= 0.05 * result.turns  # two that come in one millisecond may change


HOLD = """
import sys, threading
from langchain_core.messages import HumanMessage
from langchain_rwkv_state import DiskStateStore
from langchain_rwkv_state.conversation.session import RWKVSession
from langchain_rwkv_state.store import turns
from tests.helpers.fake_chat import FakeChat

turns.LEASE_SECONDS = 1.0

def hang():
    sys.stdout.write("running\\n")
    sys.stdout.flush()
    threading.Event().wait()

store = DiskStateStore(sys.argv[1])
RWKVSession(FakeChat(store=store, before_answer=hang), store, "bob").invoke([HumanMessage("x")])
"""


def test_a_killed_process_holds_nobody_up_for_longer_than_its_lease(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "states")]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder,
        DiskStateStore(tmp_path / "states") as store,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "running\n"
        time.sleep(1.5)  # longer than its lease: it is renewed while the process lives
        assert [turn.process for turn in store.queue("bob")] == [holder.pid]
        holder.kill()
        began = time.monotonic()
        session = RWKVSession(FakeChat(store=store), store, "bob", wait_timeout=20)
        assert session.invoke([HumanMessage("one")]).content == "heard 1"
        assert time.monotonic() - began < 10
        assert store.queue("bob") == []
        assert len(store.log("bob")) == 1
