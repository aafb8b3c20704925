"""What one look or one transaction sees of Redis: what it read, and what it is about to write.

Nothing is written until all is decided: writes lie here, over what was read, so that a later read
finds them. What was read is noted, so that Redis can say whether it still stands. The easy mistake
is to believe several reads that came one after the other: somebody may have written in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.redis.functions import Op, counted, with_digest
from langchain_rwkv_state.store.redis.keys import Keys

Page = Callable[[bytes, bytes], list[tuple[bytes, bytes | None, bytes | None]]]
"""Returns sessions from a name to another: names, rows and newest turns."""
Sure = Callable[[Callable[["Space"], Any]], Any]
"""Runs a look, and believes that something is gone only as of one moment."""
Run = Callable[[Sequence[Op]], list[Any]]
"""Runs commands at once and returns their replies."""

_MEMBERS = 8
_FIELDS = 500  # of one command: Lua takes no more than some thousands of words at once


class TooMuch(Exception):
    """More was read than can be looked at again in one go."""


class Space:
    """What a look or a transaction sees.

    Args:
        keys: What rows are called.
        run: Runs commands.
        page: Reads sessions in order.
        sure: Makes sure of what a view says; ``None`` where all that is read is noted: each reply
            is then read once, and can be held against what is there later.
        most: How many commands are noted at most; ``None`` for any number.

    Attributes:
        keys: As given.
        page: As given.
        sure: As given.
        limit: The most bytes that the store may come to by what is written.
        growth: By how many it grows.
    """

    def __init__(
        self,
        keys: Keys,
        run: Run,
        page: Page,
        sure: Sure | None = None,
        *,
        most: int | None = None,
    ) -> None:
        self.keys = keys
        self.page = page
        self.sure = sure
        self.limit: int | None = None
        self.growth = 0
        self._run = run
        self._most = most
        self._seen: dict[Op, Any] = {}
        self._early: dict[Op, Any] = {}
        self._hashes: dict[bytes, dict[bytes, bytes | None]] = {}
        self._sorted: dict[bytes, dict[bytes, float | None]] = {}
        self._more: list[Op] = []

    def __call__(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Refuses SQL, which a store of tables would run here.

        Raises:
            StoreError: Always.
        """
        raise StoreError(f"A store in Redis has no SQL: {statement:.80} ({len(values)} values).")

    # -- reading ---------------------------------------------------------------------------------

    def read(self, ops: Sequence[Op]) -> list[Any]:
        """Runs commands that only read, as if nothing had been written here."""
        if self.sure is not None:
            return self._run(ops)
        for op in ops:
            if op in self._early:
                self._seen[op] = self._early.pop(op)
        new = [op for op in dict.fromkeys(ops) if op not in self._seen]
        if new:
            if self._most is not None and len(self._seen) + len(new) > self._most:
                raise TooMuch
            self._seen.update(zip(new, self._run(new), strict=True))
        return [self._seen[op] for op in ops]

    def early(self, ops: Iterable[Op]) -> None:
        """Runs commands at once that will probably be read; only what is read then is noted."""
        new = [op for op in ops if not self.knows(op)]
        if new:
            self._early.update(zip(new, self._run(new), strict=True))

    def knows(self, op: Op) -> bool:
        """Says whether a command was run already."""
        return op in self._seen or op in self._early

    def glance(self, *op: bytes) -> Any:
        """Runs one command that only reads, whose answer may be another by the time of writing."""
        return self._run([op])[0]

    def fields(self, wanted: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """Returns some fields of some hashes.

        Args:
            wanted: Each hash's key, and its fields.
        """
        ops: list[Op] = [(b"HMGET", key, *names) for key, names in wanted]
        here = [self._hashes.get(key, {}) for key, _ in wanted]
        asked = [
            op
            for op, own, (_, names) in zip(ops, here, wanted, strict=True)
            if not own.keys() >= set(names)
        ]
        found = dict(zip(asked, self.read(asked), strict=True)) if asked else {}
        replies: list[list[bytes | None]] = []
        for op, own, (_, names) in zip(ops, here, wanted, strict=True):
            base = found.get(op) or [None] * len(names)
            replies.append([own.get(name, old) for name, old in zip(names, base, strict=True)])
        return replies

    def field(self, key: bytes, name: bytes) -> bytes | None:
        """Returns one field of a hash."""
        return self.fields([(key, [name])])[0][0]

    def hashes(self, keys: Sequence[bytes]) -> list[dict[bytes, bytes]]:
        """Returns some hashes."""
        replies = self.read([(b"HGETALL", key) for key in keys])
        return [self._with_own(key, reply) for key, reply in zip(keys, replies, strict=True)]

    def hash(self, key: bytes) -> dict[bytes, bytes]:
        """Returns a hash."""
        return self.hashes([key])[0]

    def _with_own(self, key: bytes, reply: Any) -> dict[bytes, bytes]:
        pairs = reply.items() if isinstance(reply, dict) else zip(*[iter(reply)] * 2, strict=True)
        base: dict[bytes, bytes | None] = dict(pairs)
        base.update(self._hashes.get(key, {}))
        return {name: value for name, value in base.items() if value is not None}

    def between(
        self, key: bytes, low: bytes = b"-", high: bytes = b"+", limit: int | None = None
    ) -> list[bytes]:
        """Returns members of a sorted set of one score, from `low` to `high`, sorted.

        Args:
            key: The set.
            low: The first, as ``ZRANGEBYLEX`` names it.
            high: The last.
            limit: How many at most.
        """
        op: Op = (b"ZRANGEBYLEX", key, low, high)
        own = self._sorted.get(key, {})
        if limit is not None:
            op = some(key, low, high, limit + len(own))
        found = {member for member in self.read([op])[0] if own.get(member, 0.0) is not None}
        found |= {
            member
            for member, score in own.items()
            if score is not None and _is_between(member, low, high)
        }
        return sorted(found)[:limit]

    def members(self, key: bytes) -> list[bytes]:
        """Returns all members of a sorted set of whatever scores."""
        own = self._sorted.get(key, {})
        found = [each for each in self.read([(b"ZRANGE", key, b"0", b"-1")])[0] if each not in own]
        return [*found, *(member for member, score in own.items() if score is not None)]

    def until(self, key: bytes, end: float, limit: int | None = None) -> list[bytes]:
        """Returns members of a sorted set whose scores are at most `end`, the lowest first."""
        own = self._sorted.get(key, {})
        op: Op = (b"ZRANGEBYSCORE", key, b"-inf", repr(end).encode())
        if limit is not None:
            op = (*op, b"LIMIT", b"0", b"%d" % (limit + len(own)))
        found = [member for member in self.read([op])[0] if member not in own]
        found += [member for member, score in own.items() if score is not None and score <= end]
        return found[:limit]

    def count(self, command: bytes, key: bytes) -> int:
        """Returns how large something is, as if nothing had been written here."""
        return int(self.read([(command, key)])[0])

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, name: bytes, value: bytes | None) -> None:
        """Writes a field of a hash, or deletes it."""
        self._hashes.setdefault(key, {})[name] = value

    def enter(self, key: bytes, member: bytes, score: float | None = 0.0) -> None:
        """Puts a member into a sorted set, or takes it out."""
        self._sorted.setdefault(key, {})[member] = score

    def also(self, *op: bytes) -> None:
        """Has a command run with all others, which nothing here reads."""
        self._more.append(op)

    @property
    def is_changed(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._hashes or self._sorted or self._more)

    # -- for Redis -------------------------------------------------------------------------------

    @property
    def is_one(self) -> bool:
        """Whether all that was read was read at once."""
        return len(self._seen) < 2  # one command is one moment

    def only_saw(self, read: tuple[Op, Any]) -> None:
        """Notes one command and its reply in the place of all that was read."""
        self._seen = dict([read])

    def seen(self, more: Mapping[Op, Any] = MappingProxyType({})) -> list[bytes]:
        """Returns all that was read, and some more, as `functions.STAND` takes it."""
        every = {**self._seen, **more}
        found = [b"%d" % len(every)]
        for op, reply in every.items():
            found += with_digest(op, reply)
        return found

    def written(self) -> list[bytes]:
        """Returns all that is to be written, as `functions.APPLY` takes it."""
        ops = [*self._hash_ops(), *self._sorted_ops(), *self._more]
        found = [b"%d" % len(ops)]
        for op in ops:
            found += counted(op)
        return found

    def _hash_ops(self) -> Iterable[Op]:
        for key, fields in self._hashes.items():
            gone = [name for name, value in fields.items() if value is None]
            there = [(name, value) for name, value in fields.items() if value is not None]
            for start in range(0, len(gone), _FIELDS):
                yield (b"HDEL", key, *gone[start : start + _FIELDS])
            for start in range(0, len(there), _FIELDS):
                some = there[start : start + _FIELDS]
                yield (b"HSET", key, *[word for pair in some for word in pair])

    def _sorted_ops(self) -> Iterable[Op]:
        for key, members in self._sorted.items():
            gone = [member for member, score in members.items() if score is None]
            there = [(member, score) for member, score in members.items() if score is not None]
            for start in range(0, len(gone), _FIELDS):
                yield (b"ZREM", key, *gone[start : start + _FIELDS])
            for start in range(0, len(there), _FIELDS):
                some = there[start : start + _FIELDS]
                words = [word for member, score in some for word in (repr(score).encode(), member)]
                yield (b"ZADD", key, *words)


def some(key: bytes, low: bytes = b"-", high: bytes = b"+", limit: int = 1) -> Op:
    """Returns the command for at least so many members of a sorted set, if there are."""
    limit = -(-limit // _MEMBERS) * _MEMBERS  # so that one more or less asks nothing else
    return (b"ZRANGEBYLEX", key, low, high, b"LIMIT", b"0", b"%d" % limit)


def _is_between(member: bytes, low: bytes, high: bytes) -> bool:
    above = low == b"-" or member > low[1:] or (member == low[1:] and low[:1] == b"[")
    below = high == b"+" or member < high[1:] or (member == high[1:] and high[:1] == b"[")
    return above and below
