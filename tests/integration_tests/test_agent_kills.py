"""An agent that is killed (SIGKILL) at any point of a turn is told nothing twice."""

from pathlib import Path

import pytest

from tests.helpers.agent_on_disk import ASKED, FIRST, LAST, kill_everywhere
from tests.helpers.agents import called, result, said, user

TOLD = [
    user(FIRST),
    said("That was turn 1."),
    user(ASKED),
    called(("add", {"a": 1, "b": 2})),
    result("3"),
    said("done"),
    user(LAST),
    said("You are Ann."),
]


@pytest.mark.slow
@pytest.mark.posix
def test_a_thread_goes_on_after_a_kill_at_any_point_and_is_told_nothing_twice(tmp_path: Path):
    killed = kill_everywhere(tmp_path)
    # The checkpointer writes on a thread of its own, so that the points come in any order.
    assert len(killed) > 20
    assert {"put", "put_writes", "keep", "plan_call"} <= {each.point.split()[1] for each in killed}
    for each in killed:
        assert each.heard == TOLD, each.point
        assert each.answers == ["done", "You are Ann."], each.point
