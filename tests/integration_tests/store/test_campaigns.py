"""Kills while a store is opened, zeros in its database, and `check` beside writers: none does harm.

Each is a small part of one that is run by hand, `python -m tests.helpers.open_campaign 2000`,
`python -m tests.helpers.zero_campaign 4000` (`--live`, `--nbytes 4096 --aligned`) and
`python -m tests.helpers.check_beside 300`.
"""

from __future__ import annotations

import os

import pytest

from tests.helpers import check_beside, open_campaign, zero_campaign

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def test_a_kill_while_a_store_is_opened_leaves_one_that_can_be_opened(tmp_path):
    outcome = open_campaign.campaign(tmp_path / "new", 60)
    assert outcome.kills == 60
    assert outcome.unopenable == []


@pytest.mark.parametrize("live", [False, True])
def test_zeros_in_the_database_make_no_session_look_new(tmp_path, live):
    outcome = zero_campaign.campaign(tmp_path / "new", 120, live=live)
    assert outcome.bad == []
    assert outcome.counts["right"] > 0
    assert outcome.counts["refused" if live else "refused at opening"] > 0


@pytest.mark.parametrize("live", [False, True])
def test_whole_pages_of_zeros_make_no_session_look_new(tmp_path, live):
    outcome = zero_campaign.campaign(tmp_path / "new", 40, nbytes=4096, aligned=True, live=live)
    assert outcome.bad == []
    assert outcome.counts["refused" if live else "refused at opening"] > 0


def test_check_beside_four_writing_processes_raises_no_false_alarm(tmp_path):
    outcome = check_beside.watch(tmp_path / "store", 60)
    assert outcome.checks == 60
    assert outcome.alarms == []
