"""Writers killed with SIGKILL at any point lose no turn that was acknowledged.

`RWKV_STATE_KILLS` sets how many are killed (25 by default; `benchmarks/store.py` kills 250).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

import pytest

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.kill_campaign import campaign
from tests.helpers.states import random_state
from tests.integration_tests.store.test_processes import start


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kill(tmp_path):
    kills = int(os.environ.get("RWKV_STATE_KILLS", "25"))
    outcome = campaign(tmp_path, kills=kills, writers=4 if kills <= 25 else 8)
    assert outcome.kills == kills
    assert outcome.acknowledged > 0
    assert outcome.lost == []
    assert outcome.unreadable == []
    assert outcome.left == [], "orphans are swept, and all is sound"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_backup_that_is_killed_is_none(tmp_path):
    """Whatever has a backup's name is one, and whole; what was not done has none."""
    code = """
        import sys
        from pathlib import Path
        from langchain_rwkv_state.store import DiskStateStore

        root = Path(sys.argv[1])
        with DiskStateStore(root / "store") as store:
            for number in range(1000):
                store.backup(root / f"copy{sys.argv[2]}-{number}")
    """
    with DiskStateStore(tmp_path / "store", history=0) as store:
        for number in range(60):
            store.put(random_state([number]))
        for attempt in range(4):
            process = start(code, tmp_path, attempt)
            while not (tmp_path / f"copy{attempt}-0").exists():
                assert process.poll() is None, process.communicate()
            time.sleep(0.03 * attempt)
            process.kill()
            process.communicate()
    made = [path for path in tmp_path.iterdir() if path.name.startswith("copy")]
    assert len(made) >= 4
    for path in (made[0], *sorted(made)[-3:]):
        with DiskStateStore(path, read_only=True) as copy:
            assert copy.check().problems == ()
            assert copy.stats().states == 60
    for path in tmp_path.glob(".*.partial"):  # without a database until all files are there
        with suppress(StoreError), DiskStateStore(path, read_only=True) as copy:
            assert copy.check().problems == ()
