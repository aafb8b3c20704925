"""Facts that were told to the demo model are gone after a redaction: asked for, and byte by byte.

And a program that is killed in the middle of one leaves a session as before or as after, never
half.
"""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage

from langchain_rwkv_state import ChatRWKV, DiskStateStore, PrefixStateCache
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.store.records import unpack_tokens
from langchain_rwkv_state.toolbox.recall.values import FACTS, KINDS, holds, values
from tests.helpers.found import forms_of_ids, forms_of_ref, found_in
from tests.helpers.states import Reader, chat
from tests.integration_tests.store.test_processes import finish, start

FACTS_TOLD = 100
IN_A_SESSION = 4


@pytest.mark.slow
def test_100_of_100_redacted_facts_are_gone_and_the_others_are_kept(tmp_path):
    """Each of 100 sessions is told four facts, each in a turn, and loses one of them."""
    path, cached = tmp_path / "store", tmp_path / "prefixes"
    dice = random.Random(7)
    cache = PrefixStateCache(disk=cached)
    with DiskStateStore(path, log="tokens") as store:
        model = ChatRWKV(
            model="demo", store=store, prefix_cache=cache, temperature=0, max_tokens=24, slots=16
        )
        told: dict[str, dict[str, str]] = {}
        for number in range(FACTS_TOLD):
            kinds = dice.sample(KINDS, IN_A_SESSION)
            told[f"user {number}"] = values(dice, tuple(kinds))
        for turn in range(IN_A_SESSION):  # all sessions at once, in one pass of the model
            texts = []
            for facts in told.values():
                kind, value = list(facts.items())[turn]
                texts.append(FACTS[kind][0].format(v=value))
            _each(model, list(told), texts)
        known = _recalled(model, told)
        ids = {session: _ids(store, session) for session in told}
        said = [tuple(turn[1:]) for turns in ids.values() for turn in turns]
        refs = Counter(entry.ref for session in told for entry in store.log(session))
        wanted: dict[str, bytes] = {}
        gone: dict[str, str] = {}
        for number, (session, facts) in enumerate(told.items()):
            turn = number % IN_A_SESSION
            gone[session] = list(facts)[turn]
            own = ids[session][turn]
            # Whoever was told the same keeps it: what only this session said is to be gone.
            if said.count(tuple(own[1:])) == 1:
                forms = forms_of_ids(own[1:])
                wanted |= {f"{session}: {what}": form for what, form in forms.items()}
            for entry in store.log(session)[: IN_A_SESSION - turn]:
                if refs[entry.ref] == 1:
                    of = f"turn {entry.seq} of {session}: "
                    wanted |= {of + what: form for what, form in forms_of_ref(entry.ref).items()}
            text = FACTS[gone[session]][0].format(v=facts[gone[session]])
            wanted[f"{session}: its text"] = text.encode()
            store.redact(session, turns=[turn + 1])
        after = _recalled(model, told)
        lost = [session for session, kind in gone.items() if not after[session][kind]]
        kept = [
            (session, kind)
            for session, facts in told.items()
            for kind in facts
            if kind != gone[session] and known[session][kind]
        ]
        assert sum(known[session][kind] for session, kind in gone.items()) >= 0.95 * FACTS_TOLD
        assert len(lost) == FACTS_TOLD, "100 of 100 facts are gone"
        assert len(kept) >= 0.95 * FACTS_TOLD * (IN_A_SESSION - 1)
        still = [(session, kind) for session, kind in kept if after[session][kind]]
        assert len(still) >= 0.99 * len(kept), "the others are kept"
        assert store.check().problems == ()
        cache.flush()
        assert len(wanted) > 5 * FACTS_TOLD
        assert found_in(path, wanted) == []
        assert found_in(cached, wanted) == []
    model.unload()
    cache.close()


@pytest.mark.parametrize("system", [[], [SystemMessage("You are kind.")]], ids=["bare", "system"])
@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_session_has_the_head_of_one_that_was_never_told(tmp_path, system, gone):
    texts = ["My name is Marlow.", "My dog is called Rex.", "I live in Lisbon."]
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        model = ChatRWKV(model="demo", store=store, temperature=0, max_tokens=24)
        for name, said in (("bob", texts), ("al", texts[: gone - 1] + texts[gone:])):
            for text in said:
                model.with_session(name).invoke([*system, HumanMessage(text)])
        store.redact("bob", turns=[gone])
        assert [t.text for t in store.transcript("bob")] == [t.text for t in store.transcript("al")]
        assert store.head("bob") == store.head("al")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as where the system prompt were taken for a new one
            model.with_session("bob").invoke([*system, HumanMessage("What is my name?")])
        model.unload()


def _ids(store: DiskStateStore, session: str) -> list[list[int]]:
    """Returns the ids of each turn, oldest first."""
    origins = [turn.origin for turn in store._view().log(session)[::-1]]
    return [unpack_tokens(origin.tokens) for origin in origins if origin is not None]


def _each(model: ChatRWKV, sessions: list[str], texts: list[Any]) -> list[str]:
    """Says one text in each session, all at the same time."""
    talk = model.with_sessions()
    configs: Any = [{"configurable": {"session_id": session}} for session in sessions]
    return [str(answer.text) for answer in talk.batch(texts, configs)]


def _recalled(model: ChatRWKV, told: dict[str, dict[str, str]]) -> dict[str, dict[str, bool]]:
    """Asks for each fact from each session's head; says whether the answer holds it."""
    asked = [(session, kind) for session, facts in told.items() for kind in facts]
    answers = model.batch(
        [[marker(model.store.head(s)), HumanMessage(FACTS[kind][1])] for s, kind in asked]
    )
    found: dict[str, dict[str, bool]] = {session: {} for session in told}
    for (session, kind), answer in zip(asked, answers, strict=True):
        found[session][kind] = holds(str(answer.text), told[session][kind])
    return found


@pytest.mark.slow
@pytest.mark.posix
def test_a_redaction_that_is_killed_has_happened_or_not(tmp_path):
    code = """
        import os, sys
        from langchain_rwkv_state.store import DiskStateStore
        from tests.helpers.states import Reader

        for line in sys.stdin:  # a fork has all imported
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                print("over", flush=True)
                continue
            try:
                with DiskStateStore(line.strip(), log="tokens", history=2) as store:
                    print(os.getpid(), flush=True)
                    store.redact("bob", [2], Reader())
                    print("done", flush=True)
            finally:
                os._exit(0)
    """
    dice, runtime = random.Random(3), Reader()
    happened = cut_short = 0
    patience = 0.08  # seconds; a machine at work takes longer than an idle one
    forking = start(code)
    assert forking.stdin is not None
    assert forking.stdout is not None
    for attempt in range(12):
        path = tmp_path / f"store {attempt}"
        with DiskStateStore(path, log="tokens", history=2) as store:
            refs, texts = chat(store, runtime, "bob", 4)
            store.fork("bob", "al")
            store.keep(refs[3], "thread")
        forking.stdin.write(f"{path}\n")
        forking.stdin.flush()
        pid = int(forking.stdout.readline())
        time.sleep(dice.random() * patience)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        done = forking.stdout.readline() == "done\n" and forking.stdout.readline() == "over\n"
        with DiskStateStore(path, log="tokens", history=2) as store:
            numbers = {len(store.log(name)) for name in ("bob", "al")}
            assert numbers in ({3}, {4}), "in both sessions, or in none"
            left = numbers.pop()
            assert left == 3 or not done
            happened += left == 3
            cut_short += left == 4
            patience *= 1.5 if left == 4 else 0.7
            kept = store.kept("thread")
            assert kept == ([refs[3]] if left == 4 else [])
            ids = texts[3] if left == 4 else [*texts[0], *texts[3][8:]]
            assert store.get(store.head("bob") or "") == runtime.read(ids)
            if left == 3:
                wanted = {**forms_of_ref(refs[1]), **forms_of_ref(refs[3])}
                assert found_in(path, wanted) == []
            for file in path.glob("??/*.safetensors"):
                os.utime(file, (time.time() - 120, time.time() - 120))
            store.check(fix=True)
            assert store.check().problems == ()
    finish(forking)
    assert happened
    assert cut_short
