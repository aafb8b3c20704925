"""Ctrl-C in a batch: decoding stops, slots are free, threads are gone, questions are kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.posix

_SOON_SECONDS = 1.0
_PATIENCE_SECONDS = 120
_BEGUN = "begun"

_PREFACE = """
import dataclasses, threading, time
from langchain_core.prompts import ChatPromptTemplate
from langchain_rwkv_state import ChatRWKV, MemoryStateStore, RWKVLLM
from langchain_rwkv_state.engine import Engine

# No text ends an answer, so that each goes on to max_tokens: for hours.
submit, nothing = Engine.submit, dict(stop=(), roles=(), stop_ids=frozenset())
Engine.submit = lambda self, request: submit(self, dataclasses.replace(request, **nothing))
chat = ChatRWKV(
    model={model!r}, store=MemoryStateStore(), prefix_cache=False, max_tokens=10_000_000, slots=4,
    progress=False, temperature=1.0,
)
texts = [f"Tell me of {{number}}." for number in range(10)]
llm = RWKVLLM(
    model={model!r}, store=chat.store, prefix_cache=False, max_tokens=10_000_000, slots=4
)
engine = chat.loaded().engine
sessions = chat.with_sessions(on_abort="keep_question")
of = [{{"configurable": {{"session_id": f"s{{number % 5}}"}}}} for number in range(10)]

def tell():
    while engine.stats().active < {active}:
        time.sleep(0.01)
    print("begun", flush=True)

threading.Thread(target=tell).start()
try:
    {act}
    print("not interrupted")
except KeyboardInterrupt:
    pressed = time.perf_counter()
    print("interrupted", flush=True)
{then}
while engine.stats().active or engine.stats().queued:
    assert time.perf_counter() < pressed + 5, engine.stats()
    time.sleep(0.001)
print("idle", flush=True)
names = sorted(t.name for t in threading.enumerate() if "ThreadPool" in t.name)
assert names == [], names
kept = [name for name in chat.store.sessions() if chat.store.session(name).unread]
queues = [name for name in "s0 s1 s2 s3 s4 bob".split() if chat.store.queue(name)]
print("kept", len(kept), "queues", len(queues), flush=True)
chat.unload()
"""


def pressed(act: str, model: Path, *, active: int, then: str = "") -> str:
    """Presses Ctrl-C once answers are under way; returns what was printed after it.

    It must have been raised within a second of the key, and nothing else be said.
    """
    script = textwrap.dedent(_PREFACE).format(model=str(model), act=act, active=active, then=then)
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        late = threading.Timer(_PATIENCE_SECONDS, child.kill)
        late.start()
        try:
            assert child.stdout.readline().strip() == _BEGUN
            time.sleep(0.2)
            began = time.perf_counter()
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline().strip() == "interrupted"
            assert child.stdout.readline().strip() == "idle"
            assert time.perf_counter() - began < _SOON_SECONDS
            rest, errors = child.stdout.read(), child.stderr.read()
            child.wait(20)
        finally:
            late.cancel()
            child.kill()
    assert errors == ""
    assert child.returncode == 0
    return rest.strip()


@pytest.fixture
def endless(tiny_model):
    """A model whose random answers nothing ends."""
    return tiny_model(7)


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
