"""Seats: the slots of a runtime as requests use them, opened as they are needed.

A seat is one request's place, with two verbs: `snapshot` copies its state out, `restore` puts
another in. The easy mistake is to open all slots at once: each takes the memory of a state (tens
of megabytes for a large model), and most of the time one conversation is alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import torch

from langchain_rwkv_state.runtime import Runtime, Slots, open_slots
from langchain_rwkv_state.state import RWKVState

logger = logging.getLogger("langchain_rwkv_state.engine")

_GROWTH = 4  # times; few steps to the full number, since each copies all states


class Seat:
    """A slot that belongs to one request."""

    __slots__ = ("_seats", "slot")

    def __init__(self, seats: Seats, slot: int) -> None:
        self._seats = seats
        self.slot = slot

    def snapshot(self) -> RWKVState:
        """Returns a copy of the state in this seat: it costs what a state weighs."""
        return self._seats.slots.get(self.slot)

    def restore(self, state: RWKVState) -> None:
        """Puts a state into this seat."""
        self._seats.slots.put(self.slot, state)


class Seats:
    """The slots of one runtime.

    Args:
        runtime: The model.
        most: Never more slots than that.
    """

    def __init__(self, runtime: Runtime, most: int) -> None:
        self._runtime = runtime
        self._asked = self._most = most
        self._slots: Slots | None = None
        self._free: set[int] = set()

    @property
    def count(self) -> int:
        """Number of slots that are open."""
        return 0 if self._slots is None else self._slots.count

    @property
    def slots(self) -> Slots:
        """The open slots."""
        if self._slots is None:
            raise RuntimeError("There are no open slots.")
        return self._slots

    def limit(self, most: int) -> None:
        """Sets how many slots there may be; those that are open stay until all are closed."""
        self._asked = self._most = most

    def make_room(self, wanted: int) -> None:
        """Opens more slots where fewer than `wanted` are open, and some more than those.

        Where there is no memory for more, the number stays, and is not raised again.
        """
        wanted = min(wanted, self._most)
        if wanted <= self.count:
            return
        number = 1
        while number < wanted:
            number *= _GROWTH
        try:
            self._open(min(number, self._most))
        except Exception as error:  # noqa: BLE001
            self._most = max(self.count, 1)
            logger.warning("No more than %d slots could be opened: %s", self._most, error)

    def take(self, state: RWKVState) -> Seat:
        """Returns a free seat with a state in it.

        Raises:
            StateMismatch: The state belongs to another model.
        """
        if self._slots is None:
            self._open(1)
        seat = Seat(self, min(self._free))
        seat.restore(state)
        self._free.remove(seat.slot)
        return seat

    def give_back(self, seat: Seat) -> None:
        """Takes a seat back, and lets its state go."""
        if self._slots is None:
            return
        self._free.add(seat.slot)
        with contextlib.suppress(Exception):  # the next state overwrites it
            self._slots.clear(seat.slot)

    def read(self, reads: Sequence[tuple[Seat, Sequence[int]]]) -> torch.Tensor:
        """Reads ids into seats in one pass; returns logits ``[len(reads), V]``."""
        return self.slots.read([(seat.slot, ids) for seat, ids in reads])

    def drop(self) -> None:
        """Closes all slots; seats of them are void."""
        self._slots = None
        self._free = set()
        self._most = self._asked

    def _open(self, number: int) -> None:
        """Opens so many slots, and moves what is in the old ones to the same places."""
        opened = open_slots(self._runtime, number)
        taken = set(range(self.count)) - self._free
        for slot in taken:
            opened.put(slot, self.slots.get(slot))
        self._slots, self._free = opened, set(range(number)) - taken
