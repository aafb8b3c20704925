"""Writers killed with SIGKILL at any point lose no turn that was acknowledged.

`RWKV_STATE_KILLS` sets how many are killed (25 by default; `benchmarks/store.py` kills 250).
"""

from __future__ import annotations

import os

import pytest

from tests.helpers.kill_campaign import campaign


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kill(tmp_path):
    kills = int(os.environ.get("RWKV_STATE_KILLS", "25"))
    outcome = campaign(tmp_path, kills=kills, writers=4 if kills <= 25 else 8)
    assert outcome.kills == kills
    assert outcome.acknowledged > 0
    assert outcome.lost == []
    assert outcome.unreadable == []
    assert outcome.left == [], "orphans are swept, and all is sound"
