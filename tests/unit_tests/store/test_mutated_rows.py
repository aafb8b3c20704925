"""A thousand rows and a thousand files changed by another hand: none is believed, none is run.

A change is either refused with an error of ours or found by `check`; a session never comes back as
a new one, nor as another. The seeds are fixed.
"""

from __future__ import annotations

from contextlib import closing

import pytest

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.mutations import RowMutator, fill, mutate_files, mutate_rows


@pytest.mark.slow
def test_mutated_rows(tmp_path):
    found = mutate_rows(tmp_path / "campaign", 1000)
    assert found == {
        "changed": 1000,
        "noticed": 1000,
        "run": 0,
        "new_sessions": 0,
        "wrong_sessions": 0,
    }


def test_mutated_files(tmp_path):
    found = mutate_files(tmp_path / "store", 1000)
    assert found == {"changed": 1000, "noticed": 1000, "run": 0, "new_sessions": 0}


@pytest.mark.slow
def test_each_mend_makes_a_store_sound_again_or_says_what_is_lost(tmp_path):
    path = tmp_path / "store"
    with DiskStateStore(path, log="tokens") as store:
        heads = fill(store, 3)
        with closing(RowMutator(path, 3, b"payload")) as mutator:
            for _ in range(150):
                mutator.mutate()
                report = store.check(fix=True)
                assert report.problems
                left = store.check().problems
                for problem in left:
                    # A session whose row or log is gone stays so; and so does the store's secret.
                    assert any(
                        part in problem for part in ("is lost or was changed", "log", "about row")
                    ), (problem, report)
                for name, head in heads.items():
                    try:
                        assert store.head(name) == head
                        assert store.get(head)
                    except RWKVStateError:
                        assert left
                mutator.restore()
