"""Judges what the writers of `redis_campaign` said by what is in the store afterwards.

A session's log must be what was acknowledged, or that and what was under way: nothing less, nothing
twice, in that order. A session that all writers share must be one chain that holds all that was
acknowledged to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langchain_rwkv_state.store import StateStore

SHARED = "shared-"
"""What the names of sessions begin with that all writers write, one after the other."""


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        acknowledged: Turns whose commit had returned.
        unanswered: Turns that were committed, but whose writer did not hear of it.
        lost: Sentences about acknowledged turns that are not there.
        twice: Sentences about turns that are there twice, or in another order.
        conflicts: Sentences about commits that were done and called a conflict.
        unreadable: Sentences about heads and kept states that cannot be read.
        left: Problems after `check(fix=True)`.
        orphans: Files that no row named, before they were swept.
        seconds: How long it all took.
    """

    acknowledged: int = 0
    unanswered: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    orphans: int = 0
    seconds: float = 0.0

    def read(self, store: StateStore, ref: str, what: str) -> None:
        """Reads a state that must be there."""
        try:
            store.get(ref)
        except Exception as error:
            self.unreadable.append(f"{what}: {error}")

    def compare(
        self, name: str, sure: list[str], maybe: list[str] | None, found: list[str]
    ) -> None:
        """Compares a session's log with what was acknowledged, and what was under way."""
        if found == sure:
            return
        if found == maybe:
            self.unanswered += 1
            return
        lost = [ref for ref in sure if ref not in found]
        self.lost.extend(f"{name}: {ref} is not in its log of {len(found)}" for ref in lost)
        if not lost or len(set(found)) < len(found):
            self.twice.append(f"{name}: {found} is neither {sure} nor {maybe}")


class WriterNotes:
    """One writer's notes on its own sessions and kept states.

    Args:
        outcome: Takes what is found.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._sure: dict[str, list[str]] = {}
        self._maybe: dict[str, list[str]] = {}
        self._kept: set[str] = set()

    def take(self, line: dict[str, Any]) -> None:
        """Takes the next line: after a writer's last word two things may be true."""
        match line:
            case {"doing": "commit", "session": name, "ref": ref}:
                self._maybe[name] = [*self._sure.setdefault(name, []), ref]
            case {"doing": "delete", "session": name}:
                self._sure.setdefault(name, [])
                self._maybe[name] = []
            case {"done": what, "session": name}:
                self._outcome.acknowledged += what == "commit"
                self._sure[name] = self._maybe.pop(name)
            case {"seen": name, "refs": refs}:
                sure, maybe = self._sure.get(name, []), self._maybe.pop(name, None)
                self._outcome.compare(name, sure, maybe, refs)
                self._sure[name] = refs
            case {"conflict": said}:
                self._outcome.conflicts.append(said)
            case {"done": "keep", "ref": ref}:
                self._kept.add(ref)
            case {"doing": "release"}:
                self._kept = set()

    def judge(self, store: StateStore) -> None:
        """Looks at what is there."""
        for name, refs in self._sure.items():
            found = [entry.ref for entry in reversed(store.log(name))]
            self._outcome.compare(name, refs, self._maybe.get(name), found)
            if found:
                self._outcome.read(store, found[-1], f"head of {name}")
        for ref in self._kept:
            self._outcome.read(store, ref, "kept")


class SharedNotes:
    """All writers' notes on the sessions that they share."""

    def __init__(self) -> None:
        self._doing: dict[str, set[str]] = {}
        self._done: dict[str, set[str]] = {}
        self._refused: dict[str, set[str]] = {}

    def took(self, line: dict[str, Any]) -> bool:
        """Takes a line, if it is about such a session; says whether it was."""
        name = str(line.get("session", ""))
        if not name.startswith(SHARED):
            return False
        for said in (self._doing, self._done, self._refused):
            said.setdefault(name, set())
        match line:
            case {"doing": "commit", "ref": ref}:
                self._doing[name].add(ref)
            case {"done": "commit", "ref": ref}:
                self._done[name].add(ref)
            case {"refused": ref}:
                self._refused[name].add(ref)
        return True

    def judge(self, store: StateStore, outcome: Outcome) -> None:
        """Looks at what is there."""
        for name in self._doing:
            self._judge(store, name, outcome)

    def _judge(self, store: StateStore, name: str, outcome: Outcome) -> None:
        doing, done, refused = self._doing[name], self._done[name], self._refused[name]
        entries = list(reversed(store.log(name)))
        found = [entry.ref for entry in entries]
        there = set(found)
        outcome.acknowledged += len(done)
        outcome.unanswered += len(there & doing - done)
        outcome.lost.extend(f"{name}: {ref} is not in its log" for ref in done - there)
        outcome.conflicts.extend(
            f"{name}: {ref} was committed and called a conflict" for ref in refused & there
        )
        parents = [entry.parent for entry in entries]
        if len(there) < len(found) or parents != [None, *found[:-1]] or there - doing:
            outcome.twice.append(f"{name}: its log is no chain of what was committed: {found}")
        if found:
            outcome.read(store, found[-1], f"head of {name}")
