"""The suite for stores of others, run as they run it: on a good store, and on one that is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_rwkv_state import ChatRWKV, MemoryStateStore, RWKVStateHistory, StateStore
from langchain_rwkv_state.testing import StateStoreContract

ROOT = Path(__file__).parents[3]
FILE = """
from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.testing import StateStoreContract


class MyStore(MemoryStateStore):
    def commit(self, session, ref, parent, ttl=None, **options):
        super().commit(session, ref, PARENT, ttl, **options)


class TestMyStore(StateStoreContract):
    keeps_tokens = False

    def open_store(self, **settings):
        return MyStore(**settings)
"""


@pytest.mark.parametrize(
    ("parent", "failed"), [("parent", False), ("self.head(session)", True)], ids=["right", "wrong"]
)
def test_a_store_of_ones_own_is_held_to_the_contract(tmp_path, parent, failed):
    (tmp_path / "test_my_store.py").write_text(FILE.replace("PARENT", parent))
    few = "lost_race or is_not_new or twin or token_log"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-k", few],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == int(failed), found.stdout
    assert " passed" in found.stdout
    assert " skipped" in found.stdout
    if failed:
        assert "DID NOT RAISE" in found.stdout
        assert "SessionConflict" in found.stdout


def handed_on(name: str) -> Any:
    def verb(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*args, **options)

    return verb


class PortAlone(StateStore):
    """Has the verbs of the port, and nothing else that this package's stores have."""

    def __init__(self, **settings: Any) -> None:
        self.inner = MemoryStateStore(**settings)

    for _name in StateStore.__abstractmethods__:
        locals()[_name] = handed_on(_name)


class TestPortAlone(StateStoreContract):
    keeps_tokens = False

    def open_store(self, **settings: Any) -> StateStore:
        return PortAlone(**settings)  # type: ignore[abstract] # its verbs are made in a loop


def test_sessions_and_histories_need_no_more_than_the_port():
    store: StateStore = PortAlone()  # type: ignore[abstract]
    chat = ChatRWKV(model="demo", store=store, max_tokens=4)
    chat.with_session("bob").invoke("Hello.")
    history = RWKVStateHistory("al", store)
    said = HumanMessage("Hello.")
    history.add_messages([said, chat.invoke([*history.messages, said])])
    for name in ("bob", "al"):
        info = store.session(name)
        assert info is not None
        assert (info.n_turns, info.unread) == (1, ())
