"""The functions that a store has in Redis, and how they are called.

Each verb that changes something is one call of `APPLY`: it looks again at all that the verb was
decided on, and only if that stands writes all that came of it, in one step that nobody sees half
of. So the rules of turns are those of every other store, and stand in one place. A call carries an
id of its own, which is noted with what it did: a call that redis-py sends again after a lost
connection finds its id, and is answered as the first time.

What reads too much to be looked at again in one go (a check of a large store) goes by the number of
writes instead, and where somebody always writes, it has all writers wait for a while.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.redis.connect import errors

if TYPE_CHECKING:
    from redis import Redis

Op = tuple[bytes, ...]
"""A command of Redis."""

_CODE = """#!lua name=LIBRARY

-- Says which of two texts comes first by their bytes: `<` goes by the server's locale.
local function before(one, other)
    for i = 1, #one do
        local mine, its = string.byte(one, i), string.byte(other, i)
        if mine ~= its then
            return mine < its
        end
    end
    return false
end

-- A reply as one text; Python has the same in `plain`.
local function plain(op, reply)
    if reply == false then
        return '-'
    elseif type(reply) == 'number' then
        return ':' .. reply .. ';'
    elseif type(reply) == 'string' then
        return '$' .. #reply .. ':' .. reply
    end
    local parts = {}
    if op[1] == 'HGETALL' then
        for i = 1, #reply, 2 do
            local pair = plain({}, reply[i]) .. plain({}, reply[i + 1])
            parts[#parts + 1] = redis.sha1hex(pair)  -- of one length, and soon told apart
        end
        table.sort(parts, before)
    else
        for i = 1, #reply do
            parts[i] = plain({}, reply[i])
        end
    end
    return '*' .. #parts .. ':' .. table.concat(parts)
end

-- Takes a list of words that begins with their number.
local function taken(args, at)
    local words = {}
    local count = tonumber(args[at])
    for i = 1, count do
        words[i] = args[at + i]
    end
    return words, at + count + 1
end

-- Says whether commands still find what they found; they end with the digest of that.
local function stand(args, at)
    local count = tonumber(args[at])
    at = at + 1
    for _ = 1, count do
        local op
        op, at = taken(args, at)
        local digest = table.remove(op)
        if redis.sha1hex(plain(op, redis.call(unpack(op)))) ~= digest then
            return false, at
        end
    end
    return true, at
end

-- Adds to what all rows come to; names are xored in halves, since bits have 32 here.
local function count(key, nbytes, sessions, high, low)
    redis.call('HINCRBY', key, 'nbytes', nbytes)
    redis.call('HINCRBY', key, 'sessions', sessions)
    for field, bits in pairs({high = high, low = low}) do
        local old = tonumber(redis.call('HGET', key, field) or '0') or 0
        redis.call('HSET', key, field, string.format('%d', bit.bxor(old, tonumber(bits))))
    end
end

-- Lets a state's bytes live as long as what holds it, if they would not anyway.
local function last(key, left)
    local bytes = redis.call('HGET', key, 'bytes')
    if not bytes then
        return
    elseif left == 'never' then
        redis.call('PERSIST', bytes)
    else
        redis.call('PEXPIRE', bytes, left, 'GT')
    end
end

-- What the words of ours run; and what a key must hold for a command not to fail.
local inside = {
    COUNT = {{'HGET', 'f'}, {'HSET', 'f', 'v'}, {'HINCRBY', 'f', '1'}},
    LAST = {{'HGET', 'f'}, {'PERSIST'}, {'PEXPIRE', '1', 'GT'}}
}
local kinds = {
    COUNT = 'hash', LAST = 'hash', HSET = 'hash', HDEL = 'hash', HINCRBY = 'hash',
    ZADD = 'zset', ZREM = 'zset'
}

-- Says why some command would fail: nothing takes back those that ran before it.
local function refusal(ops)
    for _, op in ipairs(ops) do
        local key, kind = op[2], kinds[op[1]]
        local found = kind and redis.call('TYPE', key).ok
        if kind and found ~= 'none' and found ~= kind then
            return 'WRONGTYPE the key ' .. key .. ' was changed: it is a ' .. found
        end
        for _, each in ipairs(inside[op[1]] or {op}) do
            local may
            if each == op then
                may = redis.acl_check_cmd(unpack(op))
            else
                may = redis.acl_check_cmd(each[1], key, unpack(each, 2))
            end
            if not may then
                return 'NOPERM this user may not run ' .. each[1] .. ' on ' .. key
            end
        end
        if op[1] == 'COUNT' then
            for _, each in ipairs(redis.call('HMGET', key, 'nbytes', 'sessions')) do
                if each and not string.find(each, '^%-?%d+$') then
                    return 'ERR ' .. key .. ' was changed: check(fix=True) counts the rows again'
                end
            end
        end
    end
end

local function apply(keys, args)
    local done = keys[1] .. 'x:' .. args[1]
    if redis.call('EXISTS', done) == 1 then
        return 'done'
    end
    local held_up = redis.call('GET', keys[1] .. 'pause')
    if held_up and held_up ~= args[2] then
        return 'stale'
    end
    local limit, growth = tonumber(args[3]), tonumber(args[4])
    local stands, at = stand(args, 6)
    if not stands then
        return 'stale'
    end
    if limit and growth > 0 then
        local held = tonumber(redis.call('HGET', keys[1] .. 'totals', 'nbytes') or '0')
        if held + growth > limit then
            return 'stale'
        end
    end
    local number = tonumber(args[at])
    if number == 0 then
        return 'done'
    end
    at = at + 1
    local ops = {}
    for i = 1, number do
        ops[i], at = taken(args, at)
    end
    local totals = keys[1] .. 'totals'
    if not string.find(redis.call('HGET', totals, 'version') or '0', '^%d+$') then
        table.insert(ops, {'HDEL', totals, 'version'})
    end
    table.insert(ops, {'HINCRBY', totals, 'version', '1'})
    table.insert(ops, {'SET', done, '1', 'EX', args[5]})
    local refused = refusal(ops)
    if refused then
        return redis.error_reply(refused)
    end
    for _, op in ipairs(ops) do
        if op[1] == 'COUNT' then
            count(op[2], op[3], op[4], op[5], op[6])
        elseif op[1] == 'LAST' then
            last(op[2], op[3])
        else
            redis.call(unpack(op))
        end
    end
    return 'done'
end

local function still(keys, args)
    return stand(args, 1) and 1 or 0
end

-- A page of the names in an index, each with its session's row and newest turn.
local function names(keys, args)
    local found = {}
    for _, name in ipairs(redis.call(
        'ZRANGEBYLEX', keys[1] .. 'names', args[1], args[2], 'LIMIT', 0, args[3]
    )) do
        local own = redis.call('HMGET', keys[1] .. 's:' .. name, 'row', 'top')
        found[#found + 1] = {name, own[1], own[2]}
    end
    return found
end

redis.register_function('LIBRARY_apply', apply)
redis.register_function{
    function_name = 'LIBRARY_free', callback = apply, flags = {'allow-oom'}
}
redis.register_function{
    function_name = 'LIBRARY_stand', callback = still, flags = {'no-writes'}
}
redis.register_function{
    function_name = 'LIBRARY_names', callback = names, flags = {'no-writes'}
}
"""
LIBRARY = f"rwkv_state_{hashlib.sha1(_CODE.encode(), usedforsecurity=False).hexdigest()[:12]}"
"""It is named by what is in it, so that two releases can use one server."""
CODE = _CODE.replace("LIBRARY", LIBRARY)  # no braces to escape, as a format's
APPLY, FREE, STAND, NAMES = (f"{LIBRARY}_{each}" for each in ("apply", "free", "stand", "names"))


def require(client: Redis, base: bytes) -> None:
    """Has the functions in a server: one that has them is changed in nothing, full or not.

    Raises:
        StoreError: It cannot be reached, takes no functions, or does not let this user do that.
    """
    call(client, STAND, base, [b"0"], reads=True)


def load(client: Redis) -> None:
    """Puts the functions into a server.

    Raises:
        StoreError: It cannot be reached, or does not let this user do that.
    """
    with errors():
        client.function_load(CODE, replace=True)


def call(client: Redis, name: str, base: bytes, args: Sequence[Any], *, reads: bool = False) -> Any:
    """Calls a function; one that the server has lost is loaded again.

    Args:
        client: The server.
        name: `APPLY`, `FREE` (which may also where memory is short), `STAND` or `NAMES`.
        base: What the store's keys begin with.
        args: What it is given.
        reads: Whether it changes nothing.

    Raises:
        StoreFull, StoreError: As `connect.errors` says.
    """
    verb = client.fcall_ro if reads else client.fcall
    with errors():
        from redis.exceptions import ResponseError

        for is_last in (False, True):
            try:
                return verb(name, 1, base, *args)
            except ResponseError as error:
                if is_last or "Function not found" not in str(error):
                    raise
            load(client)
    raise StoreError("The server forgets its functions as fast as they are loaded.")


def plain(op: Op, reply: Any) -> bytes:
    """Returns a reply as one text, as the function of this name in Lua does."""
    if reply is None:
        return b"-"
    if isinstance(reply, int):
        return b":%d;" % reply
    if isinstance(reply, bytes):
        return b"$%d:%b" % (len(reply), reply)
    if op and op[0] == b"HGETALL":
        pairs = reply.items() if isinstance(reply, dict) else zip(*[iter(reply)] * 2, strict=True)
        parts = sorted(_sha1(plain((), field) + plain((), value)) for field, value in pairs)
    else:
        parts = [plain((), each) for each in reply]
    return b"*%d:%b" % (len(parts), b"".join(parts))


def with_digest(op: Op, reply: Any) -> list[bytes]:
    """Returns a command and the digest of what it found, as `STAND` takes them."""
    return counted([*op, _sha1(plain(op, reply))])


def _sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()


def counted(words: Sequence[bytes]) -> list[bytes]:
    """Returns words, with their number before them."""
    return [b"%d" % len(words), *words]
