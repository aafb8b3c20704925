"""Gives each running request a slot of the runtime, and keeps snapshots in those that are spare.

On a CPU slots are opened as they are needed: each takes the memory of a state (tens of megabytes
for a large model), and most of the time one conversation is alone. A card opens all at once, since
its recorded steps know their addresses.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from langchain_rwkv_state._free_memory import is_out_of_memory
from langchain_rwkv_state.engine.courier import Courier, Receiver
from langchain_rwkv_state.runtime import Runtime, Slots, open_slots
from langchain_rwkv_state.runtime.base import budgets_of
from langchain_rwkv_state.runtime.slots import ChoosingSlots
from langchain_rwkv_state.state import RWKVState

logger = logging.getLogger("langchain_rwkv_state.engine")

_GROWTH = 4  # times; few steps to the full number, since each copies all states


class NoDeviceMemory(Exception):
    """There was no room to move a state: no fault of the request that it belongs to."""


@contextlib.contextmanager
def _moving() -> Iterator[None]:
    """Tells want of memory from whatever else may go wrong as a state is moved."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise NoDeviceMemory(str(error)) from error
        raise


class Snapshot:
    """A state as it was. It lies in a spare slot until somebody wants it on the host.

    Args:
        pool: The slots.
        held: The state, or the spare slot that a copy of it lies in.
    """

    __slots__ = ("_held", "_pool")

    def __init__(self, pool: SlotPool, held: RWKVState | int) -> None:
        self._pool = pool
        self._held = held

    def state(self) -> RWKVState:
        """Returns the state on the host; the spare slot is free again."""
        if isinstance(self._held, int):
            slot, self._held = self._held, self._pool.state(self._held)
            self._pool.free(slot)
        return self._held

    def restore(self, slot: int) -> None:
        """Puts the state into a slot."""
        with _moving():
            if isinstance(self._held, int):
                self._pool.slots.copy(self._held, slot)
            else:
                self._pool.slots.put(slot, self._held)

    def drop(self) -> None:
        """Frees the spare slot, where there is one; the snapshot is void then."""
        if isinstance(self._held, int):
            self._pool.free(self._held)


class SlotPool:
    """The slots of one runtime: who has one, and which are spare.

    Args:
        runtime: The model.
        most: Never more slots than that.

    Attributes:
        courier: Hands over states that are copied out beside the work.
    """

    def __init__(self, runtime: Runtime, most: int) -> None:
        self._runtime = runtime
        self._asked = self._most = most
        self._slots: Slots | None = None
        self._free: set[int] = set()
        self._snapshots: dict[int, Snapshot] = {}  # those in spare slots, the oldest first
        self.courier = Courier()

    @property
    def count(self) -> int:
        """How many requests can run: slots that are open, without those that are for copies."""
        if self._slots is None:
            return 0
        return self._slots.served if isinstance(self._slots, ChoosingSlots) else self._slots.count

    @property
    def most(self) -> int:
        """Never more slots than that, as things are."""
        return self._most

    @property
    def can_mark(self) -> bool:
        """Whether a read can leave the state at a position within it in a spare slot."""
        return getattr(self._slots, "can_mark", False)

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

        Where there is no memory for so many, half of them are tried, and so on; the number that was
        found is not raised again.
        """
        wanted, grows = min(wanted, self._most), budgets_of(self._runtime).grows
        if wanted <= self.count or (self._slots is not None and not grows):
            return
        number = 1 if grows else self._most
        while number < wanted:
            number *= _GROWTH
        number, why = min(number, self._most), ""
        while number > self.count:
            try:
                self._open(number)
            except Exception as error:  # noqa: BLE001
                number = number // 2 if is_out_of_memory(error) else 0
                why = str(error)
        if why:
            self._most = max(self.count, 1)
            logger.warning("No more than %d slots could be opened: %s", self._most, why)

    def open_one(self) -> None:
        """Opens one slot where none is open; raises whatever keeps the runtime from it."""
        if self._slots is None:
            self._open(1)

    def allocate(self, state: RWKVState) -> int:
        """Returns a free slot with a state in it.

        Raises:
            StateMismatch: The state belongs to another model.
            NoDeviceMemory: There is no room for it.
        """
        with _moving():
            self.open_one()
            self._spill()
            slot = min(self._free)
            self.slots.put(slot, state)
        self._free.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        """Takes a slot back, and lets its state go."""
        self._snapshots.pop(slot, None)
        if self._slots is None:
            return
        self._free.add(slot)
        with contextlib.suppress(Exception):  # the next state overwrites it
            self._slots.clear(slot)

    def state(self, slot: int) -> RWKVState:
        """Returns a copy of the state in a slot, on the host: it costs what a state weighs."""
        with _moving():
            return self.slots.get(slot)

    def hand_over(self, slot: int, take: Callable[[RWKVState], None], receiver: Receiver) -> None:
        """Hands a slot's state over: now, or, where it is copied out beside the work, once it is.

        Args:
            slot: The slot, which may be freed behind this.
            take: Takes the state, perhaps on another thread.
            receiver: Learns of it if that fails there.
        """
        fetch = self.begin_state(slot)
        if fetch is None:
            take(self.state(slot))
        else:
            self.courier.bring(fetch, take, receiver)

    def begin_state(self, slot: int) -> Callable[[], RWKVState] | None:
        """Begins to copy a slot's state out, where that can be done beside the work.

        Returns:
            A function that waits for the copy, on any thread; ``None`` where nothing was begun.
        """
        begin = getattr(self.slots, "begin_get", None)
        if begin is None:
            return None
        with _moving():
            fetch: Callable[[], RWKVState] = begin(slot)
        return fetch

    def snapshot(self, slot: int) -> Snapshot:
        """Returns a copy of the state in a slot, in a spare slot where there is one.

        The oldest snapshot goes to the host in its place: what is kept for long is wanted seldom,
        and what is kept for the length of a word would be copied at each line's end.
        """
        if not self._free and not self._snapshots:
            return Snapshot(self, self.state(slot))
        self._spill()
        spare = max(self._free)
        with _moving():
            self.slots.copy(slot, spare)
        self._free.remove(spare)
        return self.reserved(spare)

    def reserve(self) -> int | None:
        """Takes a spare slot, for a state that a read is to leave there; ``None`` if none is."""
        if not self._free:
            return None
        spare = max(self._free)
        self._free.remove(spare)
        return spare

    def reserved(self, spare: int) -> Snapshot:
        """Returns what lies in a spare slot that was taken, as a snapshot."""
        found = self._snapshots[spare] = Snapshot(self, spare)
        return found

    def shrink(self, at_work: int) -> bool:
        """Closes all slots, and opens fewer from here on, until `close`.

        Args:
            at_work: Number of slots that were at work; half of them may be.

        Returns:
            Whether that gives any memory back.
        """
        before, most = self.count, min(max(at_work // 2, 1), self._most)
        self.close()
        self._most = most
        return before > most

    def close(self) -> None:
        """Closes all slots; what was in them is gone."""
        self._slots = None
        self._free, self._snapshots = set(), {}
        self._most = self._asked

    def _spill(self) -> None:
        """Has the oldest snapshot make room on the host, where no slot is free."""
        if not self._free:
            next(iter(self._snapshots.values())).state()

    def _open(self, number: int) -> None:
        """Opens so many slots, and moves what is in the old ones to the same places."""
        opened = open_slots(self._runtime, number)
        old = 0 if self._slots is None else self._slots.count
        taken = set(range(old)) - self._free
        for slot in taken:
            opened.put(slot, self.slots.get(slot))
        self._slots, self._free = opened, set(range(opened.count)) - taken
