"""Zeroes sectors and pages of a used database, and checks what a store makes of each.

Each offset is damaged by itself: the store is opened, every session is asked for, and a first turn
is committed where one looks new. What must never happen is that a session which exists looks new,
or is left out of the list, or that an error is none of ours. Before a store is opened SQLite's own
check refuses most damage: with `live` the zeros come under a store that is open, and the session's
row and its witness stand for themselves.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.store.disk_backend import DiskBackend
from tests.helpers.states import random_state


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        counts: How many offsets came to what: ``refused at opening``, ``refused`` (some session),
            ``right``, and ``right, found by check``.
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
    live: bool = False,
) -> Outcome:
    """Zeroes `nbytes` at each of `offsets` places, spread over the whole database.

    Args:
        path: An empty directory.
        offsets: How many places.
        nbytes: How many bytes go at a time.
        aligned: Whether a place is a multiple of `nbytes`.
        sessions: How many sessions the store has.
        live: Whether the store is open when they go, and not opened after.
    """
    path.mkdir(parents=True, exist_ok=True)
    root = path / "store"
    heads = _filled(root, sessions)
    whole = (root / "cache.db").read_bytes()
    outcome = Outcome()
    unit = nbytes if aligned else 1
    last = len(whole) // unit
    for at in sorted({number * last // offsets * unit for number in range(offsets)}):
        for name in ("cache.db-wal", "cache.db-shm"):
            (root / name).unlink(missing_ok=True)
        damaged = whole[:at] + bytes(min(nbytes, len(whole) - at)) + whole[at + nbytes :]
        (root / "cache.db").write_bytes(whole if live else damaged)
        try:
            store = DiskStateStore(root)
        except RWKVStateError:
            outcome.counts["refused at opening"] += 1
            continue
        except Exception as error:
            outcome.odd.append(f"offset {at}: opening: {type(error).__name__}: {error}")
            continue
        with store:
            if live:
                _damage(store, root / "cache.db", damaged)
            _judge(store, heads, f"offset {at}", outcome)
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


def _damage(store: DiskStateStore, database: Path, damaged: bytes) -> None:
    """Writes zeros under an open store, which then has none of the pages in its memory."""
    backend = store._backend
    assert isinstance(backend, DiskBackend)
    connection = backend._opened()._con
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with database.open("r+b") as file:
        file.write(damaged)
    connection.execute("PRAGMA shrink_memory")


def _judge(store: DiskStateStore, heads: dict[str, str], place: str, outcome: Outcome) -> None:
    try:
        refused = [name for name in heads if _is_refused(store, name, heads[name], place, outcome)]
        refused += _unlisted(store, heads, place, outcome)
        sound = _is_sound(store)
    except Exception as error:
        outcome.odd.append(f"{place}: {type(error).__name__}: {error}")
        return
    outcome.counts["refused" if refused else "right" if sound else "right, found by check"] += 1


def _is_refused(
    store: DiskStateStore, name: str, expected: str, place: str, outcome: Outcome
) -> bool:
    """Uses a session; says whether that was refused."""
    try:
        head = store.head(name)
    except RWKVStateError:
        if _takes_a_first_turn(store, name):
            outcome.committed.append(f"{place}: {name}, which was refused")
        return True
    if head is None:
        outcome.new.append(f"{place}: {name}")
        if _takes_a_first_turn(store, name):
            outcome.committed.append(f"{place}: {name}")
    elif head != expected:
        outcome.wrong.append(f"{place}: {name} has {head}")
    else:
        with suppress(RWKVStateError):
            if store.get(head).n_tokens != 2:
                outcome.wrong.append(f"{place}: the state of {name}")
    return False


def _takes_a_first_turn(store: DiskStateStore, name: str) -> bool:
    """Says whether a session that exists takes a turn as if it were new."""
    try:
        store.commit(name, store.stage(random_state([9])), None)
    except RWKVStateError:
        return False
    return True


def _unlisted(
    store: DiskStateStore, heads: dict[str, str], place: str, outcome: Outcome
) -> list[str]:
    """Compares the list of sessions; returns what says that it was refused."""
    try:
        listed = set(store.sessions())
    except RWKVStateError as error:
        return [str(error)]
    outcome.new.extend(f"{place}: {name} is not listed" for name in heads.keys() - listed)
    outcome.wrong.extend(f"{place}: {name!r} is listed" for name in listed - heads.keys())
    return []


def _is_sound(store: DiskStateStore) -> bool:
    try:
        return store.check().sound
    except RWKVStateError:
        return False


def main() -> None:
    """Runs a campaign; the argument is the number of offsets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("offsets", type=int)
    parser.add_argument("--nbytes", type=int, default=512)
    parser.add_argument("--aligned", action="store_true")
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--live", action="store_true")
    asked = vars(parser.parse_args())
    folder = Path(tempfile.mkdtemp())
    try:
        start = time.monotonic()
        outcome = campaign(folder, asked.pop("offsets"), **asked)
    finally:
        shutil.rmtree(folder)
    counts = dict(outcome.counts)
    sys.stdout.write(
        f"{sum(counts.values())} offsets: {counts}; looked new {len(outcome.new)}, "
        f"odd {len(outcome.odd)}, wrong {len(outcome.wrong)}, "
        f"committed over {len(outcome.committed)}; {time.monotonic() - start:.0f} s\n"
    )
    for line in outcome.bad[:8]:
        sys.stdout.write(f"  {line:.300}\n")
    sys.exit(bool(outcome.bad))


if __name__ == "__main__":
    main()
