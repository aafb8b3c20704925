"""What one store's states are called in another: named by their derivations, where known.

A state that came along tells its derivation; of the others only token ids can. It reads values and
touches no tables. A blend or a donor was not read from token ids alone, so what they lead to must
have the length that the log tells.
"""

from __future__ import annotations

from dataclasses import replace

from langchain_rwkv_state.state import Derivation, reference
from langchain_rwkv_state.store.records import LogEntry, Origin
from langchain_rwkv_state.store.tokens import joined, unpack_tokens


class Names:
    """What the states of another store are called in this one.

    Args:
        key: This store's secret.
        log: The turns, oldest first, whose token ids may be followed.
    """

    def __init__(self, key: bytes, log: tuple[LogEntry, ...]) -> None:
        self._key = key
        self._log = log
        self._known: dict[str, Derivation] = {}
        self._origins: dict[str, Origin] = {}
        self._followed: set[str] = set()
        self._follow()

    def __call__(self, old: str) -> str:
        """Returns a state's name here; its old one where nothing tells its derivation."""
        derivation = self._known.get(old)
        return old if derivation is None else reference(derivation, self._key)

    def of(self, old: str | None) -> str | None:
        """Returns the same, and ``None`` for no state."""
        return None if old is None else self(old)

    def learn(self, old: str, derivation: Derivation) -> None:
        """Notes what a state was made from."""
        self._known[old] = derivation
        self._follow()

    def moved(self, origin: Origin | None) -> Origin | None:
        """Returns an origin that names its base as this store does."""
        return None if origin is None else replace(origin, base=self.of(origin.base))

    def origin_of(self, old: str) -> Origin | None:
        """Returns what a state can be made from again, told from as far back as the log goes."""
        return self.moved(self._origins.get(old))

    def _follow(self) -> None:
        """Works out, oldest first, what the token ids of the log lead to."""
        for turn in self._log:
            origin = turn.origin
            if origin is None or turn.ref in self._followed:
                continue
            base = origin.base
            start = Derivation(origin.fingerprint) if base is None else self._known.get(base)
            if start is None or start.fingerprint != origin.fingerprint:
                continue
            self._followed.add(turn.ref)
            found = start.read(unpack_tokens(origin.tokens))
            if found.n_tokens != turn.n_tokens:
                continue  # a blend or a donor: what it was read from is not all that it is
            self._known.setdefault(turn.ref, found)
            before = None if base is None else self._origins.get(base)
            self._origins[turn.ref] = origin if before is None else joined(before, origin)
