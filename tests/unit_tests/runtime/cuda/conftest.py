"""A card that a stand-in plays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.cuda_stand_in import StandIn


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A card, and an eye on what this thread does with it."""
    cards = StandIn(monkeypatch)
    with cards.watch():
        yield cards
