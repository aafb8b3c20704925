"""Redis and its clients, killed with SIGKILL at any point, lose no turn that was acknowledged.

`RWKV_STATE_REDIS_KILLS=100,250` kills Redis 100 times and 250 clients (5 and 10 by default);
`python -m tests.helpers.redis_campaign` has more to choose.
"""

from __future__ import annotations

import os

import pytest

from langchain_rwkv_state.store import MemoryStateStore
from tests.helpers.redis_campaign import Plan, campaign
from tests.helpers.redis_notes import Outcome, SharedNotes, WriterNotes
from tests.helpers.redis_server import needs_redis
from tests.helpers.states import random_state


@needs_redis
@pytest.mark.slow
def test_what_was_acknowledged_outlives_kills_of_redis_and_of_its_clients():
    given = os.environ.get("RWKV_STATE_REDIS_KILLS", "5,10")
    servers, clients = map(int, given.split(","))
    outcome = campaign(Plan(servers, clients, files=True))
    assert outcome.acknowledged > servers + clients
    assert outcome.lost == []
    assert outcome.twice == []
    assert outcome.conflicts == [], "a commit that was sent again meets its own"
    assert outcome.unreadable == []
    assert outcome.left == [], "orphans are swept, and all is sound"


def test_a_turn_that_is_gone_or_there_twice_would_be_noticed():
    with MemoryStateStore() as store:
        head = None
        for number in range(3):
            ref = store.stage(random_state([number]), parent=head)
            store.commit("s", ref, head)
            store.commit("shared-0", ref, head)
            head = ref
        refs = [entry.ref for entry in reversed(store.log("s"))]
        assert judged(store, refs) == Outcome(acknowledged=6)
        assert judged(store, refs[:2], doing=refs[2]) == Outcome(acknowledged=4, unanswered=2)
        gone = judged(store, [*refs, "gone"])
        assert len(gone.lost) == 2
        assert gone.twice == []
        assert len(judged(store, [refs[0], refs[2], refs[1]]).twice) == 1, "in another order"
        assert len(judged(store, refs[:1]).twice) == 2, "what nobody committed"


def judged(store, said, doing=None):
    """Judges one writer's notes: the same of a session of its own and of a shared one."""
    outcome = Outcome()
    own, shared = WriterNotes(outcome), SharedNotes()
    for name, take in (("s", own.take), ("shared-0", shared.took)):
        for ref in said:
            take({"doing": "commit", "session": name, "ref": ref})
            take({"done": "commit", "session": name, "ref": ref})
        if doing is not None:
            take({"doing": "commit", "session": name, "ref": doing})
    own.judge(store)
    shared.judge(store, outcome)
    return outcome
