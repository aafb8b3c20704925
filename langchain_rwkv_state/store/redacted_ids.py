"""The ids of a conversation that turns are taken out of, and where on them other things stand.

Values only: references follow from ids, so that what stands on a turn is found under whatever name
it is kept. Nothing here changes a store; who else keeps what was read there asks to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state import Derivation, reference
from langchain_rwkv_state.store.records import LogEntry, unpack_tokens
from langchain_rwkv_state.store.transcript import origin_of


@dataclass(frozen=True)
class Cut:
    """A turn that is taken out. Positions are numbers of ids read since the zero state.

    Attributes:
        turn: The turn, as the session's log has it.
        start: Where what goes begins: the system block that the turn began with stays.
        end: Where it ends.
    """

    turn: LogEntry
    start: int
    end: int


@dataclass(frozen=True)
class RedactedIds:
    """Where in a conversation turns were taken out, for whoever else keeps what was read there.

    Attributes:
        base: What the first of `tokens` was read from.
        tokens: The ids of the conversation from there on, as they were.
        cuts: Where in `tokens` what was taken out begins and ends.
    """

    base: Derivation
    tokens: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]


listeners: list[Callable[[RedactedIds], int]] = []
"""Called after a redaction; each drops what it keeps of those ids, and returns how much it was."""


class Line:
    """The ids of the session that turns are taken out of, and the states along them.

    Args:
        log: Its log, oldest turn first.
        first: The first turn that is taken out.
        base: What that was read from.
        key: The store's secret.

    Raises:
        StateCorrupt: The ids of a turn do not lead to its state.
    """

    def __init__(self, log: Sequence[LogEntry], first: int, base: Derivation, key: bytes) -> None:
        self.at = base.n_tokens
        self.base = base
        self.known: dict[str | None, int] = {}
        told = [turn for turn in log if turn.seq >= first]
        later: list[int] = []
        for turn in told:
            for token in unpack_tokens(origin_of(turn).tokens):
                base = base.read([token])
                later.append(token)
                self.known[reference(base, key)] = base.n_tokens
            if self.known.get(turn.ref) != base.n_tokens:
                raise StateCorrupt(
                    f"The token ids of turn {turn.seq} do not lead to its state {turn.ref}: it was "
                    "not read from them alone, as after a blend or a decay, so the turn cannot be "
                    "taken out of it."
                )
        earlier: list[int] = []
        needs = origin_of(told[0]).base
        self.known[needs] = self.at
        for turn in reversed([turn for turn in log if turn.seq < first]):
            if turn.origin is None or turn.ref != needs:
                break
            needs = turn.origin.base
            earlier[:0] = unpack_tokens(turn.origin.tokens)
            self.known[needs] = self.at - len(earlier)
        self.tokens = (*earlier, *later)
        self.start = self.at - len(earlier)

    def reach(self, turn: LogEntry) -> int:
        """Returns up to where a turn of some session goes along the line, 0 for nowhere."""
        reach = self.known.get(turn.ref, 0)
        if turn.origin is not None and turn.origin.base in self.known:
            at = self.known[turn.origin.base]
            mine = self.tokens[at - self.start :]
            theirs = unpack_tokens(turn.origin.tokens)
            pairs = enumerate(zip(mine, theirs, strict=False))
            least = min(len(mine), len(theirs))
            reach = max(reach, at + next((n for n, (a, b) in pairs if a != b), least))
        return reach

    def cuts_of(self, log: Sequence[LogEntry], cuts: Sequence[Cut]) -> list[Cut]:
        """Returns which of the turns that go a session has too, because it took them over."""
        found = []
        for cut in cuts:
            own = next((turn for turn in log if turn.ref == cut.turn.ref), None)
            if own is not None:
                if own.created_seconds == cut.turn.created_seconds:
                    found.append(cut)
                continue
            # A turn that goes on behind it took it over in one piece; one that began within it
            # took over a part.
            reach = max((self.reach(turn) for turn in log), default=0)
            began = max((self.known.get(_base(turn), 0) for turn in log), default=0)
            if reach >= cut.end or cut.start < began:
                found.append(replace(cut, end=min(cut.end, max(reach, began))))
        return found

    def redacted(self, cuts: Sequence[Cut]) -> RedactedIds:
        """Returns the ids as others may know them."""
        base, tokens, start = self.base, self.tokens[self.at - self.start :], self.at
        if self.start == 0 and None in self.known:
            base, tokens, start = Derivation(base.fingerprint), self.tokens, 0
        places = tuple((cut.start - start, cut.end - start) for cut in cuts)
        return RedactedIds(base, tokens, places)


def _base(turn: LogEntry) -> str | None:
    return turn.parent if turn.origin is None else turn.origin.base
