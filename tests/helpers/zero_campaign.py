"""Sectors and pages of a used database that come back as zeros, and what a store makes of each.

Each offset is damaged by itself: the store is opened, every session is asked for, and a first turn
is committed where one looks new. What must never happen is that a session which exists looks new,
or is left out of the list, or that an error is none of ours. The easy mistake is to damage the file
under SQLite's own check alone: with `checked=False` that check is left out, as for damage that comes
while a store is open.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from langchain_rwkv_state.errors import RWKVStateError, StateNotFound
from langchain_rwkv_state.store import DiskStateStore, preflight
from tests.helpers.states import random_state


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        counts: How many offsets came to what: ``refused at opening``, ``right``, ``refused`` (some
            session), ``quiet`` where the zeros hit nothing in use or only what is made again.
        new: Offsets at which a session looked new or went missing from the list.
        odd: Offsets at which an error was raised that is none of ours.
        wrong: Offsets at which a session had another head or another state.
        committed: Offsets at which a first turn was committed over a session.
    """

    counts: Counter[str] = field(default_factory=Counter)
    new: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        """All that must not be."""
        return self.new + self.odd + self.wrong + self.committed


def campaign(
    path: Path,
    offsets: int,
    *,
    nbytes: int = 512,
    aligned: bool = False,
    sessions: int = 12,
    checked: bool = True,
) -> Outcome:
    """Zeroes `nbytes` at each of `offsets` places, spread over the whole database.

    Args:
        path: An empty directory.
        offsets: How many places.
        nbytes: How many bytes go at a time.
        aligned: Whether a place is a multiple of `nbytes`.
        sessions: How many sessions the store has.
        checked: Whether the store lets SQLite look for damage when it is opened.
    """
    path.mkdir(parents=True, exist_ok=True)
    root = path / "store"
    heads = _filled(root, sessions)
    whole = (root / "cache.db").read_bytes()
    outcome = Outcome()
    unit = nbytes if aligned else 1
    last = len(whole) // unit
    places = sorted({number * last // offsets * unit for number in range(offsets)})
    check = contextlib.nullcontext() if checked else _without_check()
    with check:
        for at in places:
            for name in ("cache.db-wal", "cache.db-shm"):
                (root / name).unlink(missing_ok=True)
            (root / "cache.db").write_bytes(_zeroed(whole, at, nbytes))
            _judge(root, heads, f"offset {at}", outcome)
    return outcome


def _filled(root: Path, sessions: int) -> dict[str, str]:
    """Makes a store that was used: turns, unread messages, deletions, and pages of each B-tree."""
    heads: dict[str, str] = {}
    with DiskStateStore(root) as store:
        for number in range(sessions):
            name = f"session {number:04}"
            for turn in range(3):
                ref = store.stage(random_state([number, turn]))
                store.commit(name, ref, heads.get(name))
                heads[name] = ref
            store.append_unread(name, ['"' + "x" * 300 + '"'])
        for number in range(0, sessions, 5):
            store.delete_session(f"session {number:04}")
            del heads[f"session {number:04}"]
    return heads


def _zeroed(whole: bytes, at: int, nbytes: int) -> bytes:
    return whole[:at] + bytes(min(nbytes, len(whole) - at)) + whole[at + nbytes :]


@contextlib.contextmanager
def _without_check() -> Iterator[None]:
    def look_over(path: Path, connection: object) -> preflight.Schema:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())  # type: ignore[attr-defined]

    with mock.patch.object(preflight, "look_over", look_over):
        yield


def _judge(root: Path, heads: dict[str, str], place: str, outcome: Outcome) -> None:
    try:
        store = DiskStateStore(root)
    except RWKVStateError:
        outcome.counts["refused at opening"] += 1
        return
    except Exception as error:
        outcome.odd.append(f"{place}: opening: {type(error).__name__}: {error}")
        return
    with store:
        try:
            _use(store, heads, place, outcome)
        except Exception as error:
            outcome.odd.append(f"{place}: {type(error).__name__}: {error}")


def _use(store: DiskStateStore, heads: dict[str, str], place: str, outcome: Outcome) -> None:
    refused = False
    for name, expected in heads.items():
        try:
            head = store.head(name)
        except RWKVStateError:
            refused = True
            head = None if _takes_a_first_turn(store, name) else expected
            if head is None:
                outcome.committed.append(f"{place}: {name}")
            continue
        if head is None:
            outcome.new.append(f"{place}: {name}")
            if _takes_a_first_turn(store, name):
                outcome.committed.append(f"{place}: {name}")
        elif head != expected:
            outcome.wrong.append(f"{place}: {name} has {head}")
        else:
            with contextlib.suppress(RWKVStateError):
                if store.get(head).n_tokens != 2:
                    outcome.wrong.append(f"{place}: the state of {name}")
    try:
        listed = set(store.sessions())
    except RWKVStateError:
        refused = True
    else:
        outcome.new.extend(f"{place}: {name} is not listed" for name in heads.keys() - listed)
        outcome.wrong.extend(f"{place}: {name!r} is listed" for name in listed - heads.keys())
    try:
        sound = store.check().sound
    except RWKVStateError:
        sound = False
    outcome.counts["refused" if refused else "right" if sound else "right, found by check"] += 1


def _takes_a_first_turn(store: DiskStateStore, name: str) -> bool:
    """Says whether a session that exists takes a turn as if it were new."""
    try:
        store.commit(name, store.stage(random_state([9])), None)
    except (RWKVStateError, StateNotFound):
        return False
    return True


def main() -> None:
    """Runs a campaign: how many offsets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("offsets", type=int)
    parser.add_argument("--nbytes", type=int, default=512)
    parser.add_argument("--aligned", action="store_true")
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--unchecked", action="store_true")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        start = time.monotonic()
        outcome = campaign(
            folder,
            asked.offsets,
            nbytes=asked.nbytes,
            aligned=asked.aligned,
            sessions=asked.sessions,
            checked=not asked.unchecked,
        )
        total = sum(outcome.counts.values())
        sys.stdout.write(
            f"{total} offsets: {dict(outcome.counts)}; looked new {len(outcome.new)}, "
            f"odd {len(outcome.odd)}, wrong {len(outcome.wrong)}, "
            f"committed over {len(outcome.committed)}; {time.monotonic() - start:.0f} s\n"
        )
        for line in outcome.bad[:8]:
            sys.stdout.write(f"  {line:.300}\n")
    finally:
        shutil.rmtree(folder)
    sys.exit(bool(outcome.bad))


if __name__ == "__main__":
    main()
