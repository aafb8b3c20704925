"""Ctrl-C in a batch: decoding stops, slots are free, threads are gone, questions are kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.posix

_SOON_SECONDS = 1.0
_PATIENCE_SECONDS = 120
_BEGUN = "begun"

_PROGRAM = """
import dataclasses, json, sys, threading, time
from langchain_core.prompts import ChatPromptTemplate
from langchain_rwkv_state import ChatRWKV, MemoryStateStore, RWKVLLM
from langchain_rwkv_state.engine import Engine

# No text ends an answer, so that each goes on to max_tokens: for hours.
submit, nothing = Engine.submit, dict(stop=(), roles=(), stop_ids=frozenset())
Engine.submit = lambda self, request: submit(self, dataclasses.replace(request, **nothing))
model = dict(model=sys.argv[1], prefix_cache=False, max_tokens=10_000_000, slots=4)
texts = [f"Tell me of {number}." for number in range(10)]
of = [{"configurable": {"session_id": f"s{number % 5}"}} for number in range(10)]

def tell(engine, active):
    while engine.stats().active < active:
        time.sleep(0.01)
    print("begun", flush=True)

for line in sys.stdin:
    asked = json.loads(line)
    store = MemoryStateStore()
    chat = ChatRWKV(**model, store=store, progress=False, temperature=1.0)
    llm = RWKVLLM(**model, store=store)
    engine = chat.loaded().engine
    sessions = chat.with_sessions(on_abort="keep_question")
    threading.Thread(target=tell, args=(engine, asked["active"])).start()
    try:
        exec(asked["act"])
        print("not interrupted", flush=True)
    except KeyboardInterrupt:
        pressed = time.perf_counter()
        print("interrupted", flush=True)
    exec(asked["then"])
    while engine.stats().active or engine.stats().queued:
        assert time.perf_counter() < pressed + 5, engine.stats()
        time.sleep(0.001)
    print("idle", flush=True)
    names = sorted(t.name for t in threading.enumerate() if "ThreadPool" in t.name)
    assert names == [], names
    kept = [name for name in store.sessions() if store.session(name).unread]
    queues = [name for name in "s0 s1 s2 s3 s4 bob".split() if store.queue(name)]
    print("kept", len(kept), "queues", len(queues), flush=True)
    chat.unload()
"""


@pytest.fixture(scope="module")
def endless(tiny_model):
    """A program whose model's random answers nothing ends; it says nothing else, and ends well."""
    command = [sys.executable, "-c", _PROGRAM, str(tiny_model(7))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        late = threading.Timer(_PATIENCE_SECONDS, child.kill)
        late.start()
        try:
            yield child
            rest, errors = child.communicate(timeout=20)
        finally:
            late.cancel()
            child.kill()
    assert (rest, errors) == ("", "")
    assert child.returncode == 0


def pressed(act: str, child: subprocess.Popen[str], *, active: int, then: str = "pass") -> str:
    """Presses Ctrl-C once answers are under way; returns what was left behind.

    It must have been raised within a second of the key.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps({"act": act, "active": active, "then": then}) + "\n")
    child.stdin.flush()
    assert child.stdout.readline().strip() == _BEGUN
    time.sleep(0.2)
    began = time.perf_counter()
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline().strip() == "interrupted"
    assert child.stdout.readline().strip() == "idle"
    assert time.perf_counter() - began < _SOON_SECONDS
    return child.stdout.readline().strip()


@pytest.mark.parametrize(
    ("act", "active", "kept"),
    [
        ("chat.invoke(texts[0])", 1, 0),
        ("chat.batch(texts)", 4, 0),
        ("list(chat.batch_as_completed(texts))", 4, 0),
        ("(ChatPromptTemplate.from_template('{x}') | chat).batch([{'x': t} for t in texts])", 4, 0),
        ("llm.batch(texts)", 4, 0),
        ("list(llm.batch_as_completed(texts, {'max_concurrency': 4}))", 4, 0),
        ("chat.with_session('bob').batch(texts)", 1, 0),
        ("chat.with_session('bob', on_abort='keep_question').batch(texts)", 1, 1),
        ("sessions.batch(texts, of)", 4, 4),
        ("list(sessions.batch_as_completed(texts, of))", 4, 4),
        ("sessions.batch(texts, of, return_exceptions=True)", 4, 4),
    ],
)
def test_ctrl_c_stops_within_a_second(endless, act, active, kept):
    found = pressed(act, endless, active=active)
    assert found == f"kept {kept} queues 0"


def test_ctrl_c_reaches_a_turn_that_waits_for_another_one(endless):
    """The lane of a session in whose queue another turn stands, in this process."""
    act = (
        "held = chat.with_session('s0').stream(texts[0]); "
        "other = threading.Thread(target=next, args=(held,)); other.start(); other.join(); "
        "sessions.batch(texts[:2], of[:2])"
    )
    assert pressed(act, endless, active=2, then="held.close()") == "kept 2 queues 0"
