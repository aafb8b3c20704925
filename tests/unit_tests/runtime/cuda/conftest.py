"""A card that a stand-in plays, and a process whose Triton interprets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.cuda_stand_in import StandIn
from tests.helpers.interpreter import Interpreter


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A card, and an eye on what this thread does with it."""
    cards = StandIn(monkeypatch)
    with cards.watch():
        yield cards


@pytest.fixture(scope="package")
def interpreter() -> Iterator[Interpreter]:
    """Where kernels run without a card."""
    with Interpreter() as process:
        yield process
