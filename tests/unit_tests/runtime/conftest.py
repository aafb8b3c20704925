"""The devices that tests of runtimes go through."""

from __future__ import annotations

import pytest

from tests.helpers.devices import on_card


@pytest.fixture(params=["cpu", on_card("cuda")])
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine."""
    return str(request.param)
