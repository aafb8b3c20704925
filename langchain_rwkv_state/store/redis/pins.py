"""Rows of pinned prefixes in Redis; see `store.pins`.

Three keys of the tenant hold them: the rows, who keeps each one's state, and whose states can be
released. A fourth counts the changes. Each change is one call of a function, and bears being sent
twice. The functions are a library of their own, so that a store without pins does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.pins import PinRows
from langchain_rwkv_state.store.redis.connect import errors

if TYPE_CHECKING:
    from redis import Redis

LIBRARY = "rwkv_state_pins_1"
"""Its number rises with each change, so that two releases can use one server."""

CODE = """#!lua name=LIBRARY

local function names(keys)
    local base = keys[1] .. 'pins:'
    return base .. 'rows', base .. 'owners', base .. 'retired', base .. 'generation'
end

local function retire(keys, field)
    local rows, owners, retired = names(keys)
    local owner = redis.call('HGET', owners, field)
    if owner then
        redis.call('SADD', retired, owner)
        redis.call('HDEL', owners, field)
    end
end

local function put(keys, args)
    local rows, owners, retired, generation = names(keys)
    local field, row, owner = args[1], args[2], args[3]
    if redis.call('HGET', owners, field) ~= owner then
        retire(keys, field)
        redis.call('HSET', rows, field, row)
        redis.call('HSET', owners, field, owner)
        redis.call('INCR', generation)
    end
    return 'done'
end

local function drop(keys, args)
    local rows, owners, retired, generation = names(keys)
    for _, field in ipairs(args) do
        retire(keys, field)
        if redis.call('HDEL', rows, field) == 1 then
            redis.call('INCR', generation)
        end
    end
    return 'done'
end

local function read(keys, args)
    local rows, owners, retired, generation = names(keys)
    local now = redis.call('GET', generation) or '0'
    if now == args[1] then
        return {now}
    end
    return {now, redis.call('HGETALL', rows)}
end

redis.register_function('LIBRARY_put', put)
redis.register_function{
    function_name = 'LIBRARY_drop', callback = drop, flags = {'allow-oom'}
}
redis.register_function{
    function_name = 'LIBRARY_read', callback = read, flags = {'no-writes'}
}
""".replace("LIBRARY", LIBRARY)  # no braces to escape, as a format's


class RedisPinRows(PinRows):
    """Rows of one tenant's pins.

    Args:
        client: The server; replies are bytes.
        base: What the tenant's keys begin with.

    Raises:
        StoreError: At each use, where the server cannot be reached.
    """

    def __init__(self, client: Redis, base: bytes) -> None:
        self._client = client
        self._base = base

    def put(self, key: bytes, row: bytes, owner: str) -> None:
        """See `PinRows.put`."""
        self._call("put", key.hex(), row, owner)

    def drop(self, keys: Sequence[bytes]) -> None:
        """See `PinRows.drop`."""
        self._call("drop", *(key.hex() for key in keys))

    def owner(self, key: bytes) -> str | None:
        """See `PinRows.owner`."""
        with errors():
            found: Any = self._client.hget(self._base + b"pins:owners", key.hex())
        return None if found is None else found.decode()

    def read(self, since: int) -> tuple[int, Mapping[bytes, bytes] | None]:
        """See `PinRows.read`."""
        found = self._call("read", str(since), reads=True)
        if len(found) == 1:
            return int(found[0]), None
        pairs = iter(found[1])
        rows = {bytes.fromhex(key.decode()): row for key, row in zip(pairs, pairs, strict=True)}
        return int(found[0]), rows

    def retired(self) -> Sequence[str]:
        """See `PinRows.retired`."""
        with errors():
            found: Any = self._client.smembers(self._base + b"pins:retired")
        return sorted(owner.decode() for owner in found)

    def released(self, owner: str) -> None:
        """See `PinRows.released`."""
        with errors():
            self._client.srem(self._base + b"pins:retired", owner)

    def _call(self, name: str, *args: Any, reads: bool = False) -> Any:
        """Calls a function; one that the server does not have is loaded."""
        verb = self._client.fcall_ro if reads else self._client.fcall
        with errors():
            from redis.exceptions import ResponseError

            for is_last in (False, True):
                try:
                    return verb(f"{LIBRARY}_{name}", 1, self._base, *args)
                except ResponseError as error:
                    if is_last or "Function not found" not in str(error):
                        raise
                self._client.function_load(CODE, replace=True)
        raise StoreError("The server forgets its functions as fast as they are loaded.")
