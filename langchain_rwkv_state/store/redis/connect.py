"""Opens a connection to a Redis that can keep a store's promise, and says in our words what fails.

A turn that was acknowledged must be there after a crash, and Redis promises that only with
``appendonly yes``, ``appendfsync always`` and ``maxmemory-policy noeviction``: what it is set to is
looked at before anything is stored. The easy mistake is to take a lost connection for a command
that was not done: redis-py sends a command again on its own, so each must bear being sent twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from langchain_rwkv_state.errors import StoreError, StoreFull

if TYPE_CHECKING:
    from redis import Redis

Persistence = Literal["always", "everysec", "trusted", "none"]
"""What a server must promise: see `check_persistence`."""

OLDEST = (7, 0)
"""The first Redis with functions."""
RESENDS = 3
"""How often a command whose connection is lost is sent again."""
CONNECT_SECONDS = 10.0
"""How long a connection may take to be made, at most."""
_SCHEMES = ("redis", "rediss", "unix")
_OURS = ("decode_responses", "protocol", "encoding", "encoding_errors")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.5


def connect(url: str, *, timeout_seconds: float = 60.0, persistence: str = "always") -> Redis:
    """Opens a client of a server that is fit for a store.

    Replies are bytes. A command whose connection is lost is sent again, a few times within some
    seconds; one that ran out of time is not.

    Args:
        url: ``redis://[user:password@]host:port/db``, ``rediss://…`` for TLS, or
            ``unix:///path/of/socket?db=0``. What redis-py takes as a query is taken.
        timeout_seconds: How long to wait for an answer.
        persistence: See `check_persistence`.

    Raises:
        ValueError: The URL or `persistence` is not possible.
        ImportError: redis-py is not installed.
        StoreError: There is no such server, it is older than 7.0, a replica, or may lose turns.

    Example:
        >>> client = connect("redis://localhost:6379/0")  # doctest: +SKIP
    """
    check_url(url)
    require_persistence(persistence)
    redis = _redis()
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    lost = redis.exceptions.ConnectionError
    pauses = ExponentialBackoff(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS)
    try:
        client: Redis = redis.Redis.from_url(
            url,
            protocol=2,  # lists and numbers look the same in every redis-py
            socket_timeout=timeout_seconds,
            socket_connect_timeout=min(timeout_seconds, CONNECT_SECONDS),
            retry=Retry(pauses, RESENDS, (lost,)),
            retry_on_error=[lost],  # redis-py 5 sends nothing again without
        )
    except ValueError as error:
        raise ValueError(f"{shown(url)} is no URL that redis-py can use: {error}") from error
    try:
        with errors():
            info = _info(client)
        check_server(info)
        check_persistence(client, persistence, info=info)
    except TypeError as error:  # redis-py hands what it does not know to a connection
        client.close()
        raise ValueError(
            f"The URL {shown(url)} has a setting behind its '?' that redis-py does not know: give "
            f"a store's own as arguments, or the whole URL to open_store(). ({error})"
        ) from error
    except BaseException:
        client.close()
        raise
    return client


def _redis() -> Any:
    """Returns the package redis-py.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import redis
    except ImportError as error:
        raise ImportError(
            "States in Redis need redis-py: pip install 'langchain-rwkv-state[redis]'."
        ) from error
    return redis


# -- the URL -------------------------------------------------------------------------------------


def check_url(url: object) -> None:
    """Checks the form of a server's URL, before anything is imported for it.

    Raises:
        ValueError: It has another form, or sets what a store sets itself.
    """
    if not isinstance(url, str) or urlsplit(url).scheme not in _SCHEMES:
        found = shown(url) if isinstance(url, str) else repr(url)
        raise ValueError(
            "The URL of a Redis begins with redis://, rediss:// or unix://, such as "
            f"redis://localhost:6379/0; got {found:.200}."
        )
    taken = [name for name in parse_qs(urlsplit(url).query) if name in _OURS]
    if taken:
        raise ValueError(
            f"The URL {shown(url)} sets {', '.join(taken)}, which the store sets itself: leave it "
            "out."
        )


def shown(url: str) -> str:
    """Returns a URL as it may be shown: without user, password and query.

    Example:
        >>> shown("rediss://me:secret@example.org:6379/0?ssl_ca_certs=x")
        'rediss://example.org:6379/0'
    """
    try:
        found = urlsplit(url)
    except ValueError:
        return "(a text that is no URL)"
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"


# -- the server ----------------------------------------------------------------------------------


def _info(client: Redis) -> Mapping[str, Any]:
    """Returns what the server tells of itself, nothing where it may not."""
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        found: Mapping[str, Any] = client.info()
    except NoPermissionError:
        return {}
    except ResponseError as error:
        if "unknown command" in str(error):
            return {}
        raise
    return found


def check_server(info: Mapping[str, Any]) -> None:
    """Checks that a server has functions and takes commits.

    Args:
        info: What ``INFO`` says; what it leaves out is not looked at.

    Raises:
        StoreError: It is too old, or a replica.
    """
    version = str(info.get("redis_version", ""))
    try:
        numbers = tuple(map(int, version.split(".")[:2]))
    except ValueError:
        numbers = OLDEST
    if numbers < OLDEST:
        raise StoreError(
            f"This server is Redis {version}, and a store needs 7.0 or newer (or a Valkey): its "
            "verbs are functions, which older ones have not."
        )
    if info.get("role") == "slave":
        raise StoreError(
            "This server is a replica, which takes no commits: name the primary, which it follows "
            f"at {info.get('master_host', '?')}:{info.get('master_port', '?')}."
        )


def require_persistence(wanted: object) -> None:
    """Checks the word for what a server must promise.

    Raises:
        ValueError: There is no such word.
    """
    if wanted not in get_args(Persistence):
        raise ValueError(
            f"persistence is one of {', '.join(map(repr, get_args(Persistence)))}, got {wanted!r}."
        )


def check_persistence(
    client: Redis, wanted: str = "always", *, info: Mapping[str, Any] | None = None
) -> None:
    """Checks that a server keeps what is promised for it.

    Args:
        client: A connection to it.
        wanted: ``"always"``: what was acknowledged is on the disk. ``"everysec"``: a crash may
            lose the turns of the last second or two. ``"trusted"`` is for a managed server that
            does not show its settings: they are vouched for, and only what it does show is
            checked, that it evicts nothing. ``"none"``: anything may be lost, nothing is checked.
        info: What ``INFO`` said, where it was asked already.

    Raises:
        ValueError: There is no such word.
        StoreError: The server is set so that more may be lost; the message says what, and what to
            do.
    """
    require_persistence(wanted)
    if wanted == "none":
        return
    with errors():
        if info is None:
            info = _info(client)
        settings = _settings(client)
    problem = lost_by(settings, info, wanted)
    if problem is not None:
        raise StoreError(
            f"{problem} In a store's URL that is ?persistence=, a word without quotes."
        )


def _settings(client: Redis) -> Mapping[str, str] | None:
    """Returns the settings that count, ``None`` where the server does not show them."""
    from redis.exceptions import ResponseError

    names = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
    try:
        found: list[Any] = [client.config_get(name) for name in names]
    except ResponseError as error:
        # Who may not look gets NOPERM; a managed server may have no such command at all.
        if type(error).__name__ == "NoPermissionError" or "unknown command" in str(error):
            return None
        raise
    merged = {_text(name): _text(value) for each in found for name, value in each.items()}
    return merged if {"appendonly", "maxmemory-policy"} <= merged.keys() else None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def lost_by(settings: Mapping[str, str] | None, info: Mapping[str, Any], wanted: str) -> str | None:
    """Says what a server may lose beyond what it was asked to promise.

    Args:
        settings: What ``CONFIG GET`` gives, ``None`` where it is forbidden.
        info: What ``INFO`` gives.
        wanted: What it must promise, as in `check_persistence`.

    Returns:
        A sentence or three, ``None`` where all is well.
    """
    policy = (settings or {}).get("maxmemory-policy", _text(info.get("maxmemory_policy", "")))
    if policy not in ("noeviction", ""):
        return (
            f"This Redis has maxmemory-policy {policy}: where memory is short it drops whole "
            "sessions, unsaid. Set maxmemory-policy noeviction, so that a commit without room is "
            'refused instead, or say persistence="none" if sessions may vanish.'
        )
    if wanted == "trusted":
        return None
    if settings is None:
        return (
            "This Redis does not show its settings (CONFIG GET is forbidden), so it cannot be "
            f'known whether it keeps what it acknowledged (persistence="{wanted}"). Let the user '
            "have the command CONFIG|GET; or, if you know from its provider that every write is "
            'durable before it is acknowledged, say persistence="trusted"; or say '
            'persistence="none" if turns may be lost.'
        )
    if settings.get("appendonly") != "yes":
        return (
            f"This Redis has appendonly {settings.get('appendonly')}: a crash loses all turns "
            "since its last snapshot, or all there are. Set appendonly yes and appendfsync always "
            'in redis.conf and restart it, or say persistence="none" if turns may be lost.'
        )
    flushed = settings.get("appendfsync")
    if flushed == "everysec" and wanted == "always":
        return (
            "This Redis has appendfsync everysec: a crash may lose turns of the last second or two "
            "that were acknowledged. Set appendfsync always in redis.conf (CONFIG SET does it, "
            'too), or say persistence="everysec" if that may be.'
        )
    if flushed not in ("always", "everysec"):
        return (
            f"This Redis has appendfsync {flushed}: a crash may lose half a minute of turns that "
            "were acknowledged. Set appendfsync always in redis.conf (CONFIG SET does it, too), or "
            'say persistence="none" if turns may be lost.'
        )
    if settings.get("no-appendfsync-on-rewrite") == "yes":
        return (
            "This Redis has no-appendfsync-on-rewrite yes: while it rewrites its log a crash may "
            "lose half a minute of turns that were acknowledged. Set it to no, or say "
            'persistence="none" if turns may be lost.'
        )
    return None


# -- errors --------------------------------------------------------------------------------------


@contextmanager
def errors() -> Iterator[None]:
    """Turns what redis-py raises inside into errors of this package.

    Raises:
        StoreFull: There is no room, in Redis' memory or on its disk; nothing was changed.
        StoreError: The server cannot be reached, refuses, or gave no answer in time.
    """
    from redis.exceptions import RedisClusterException, RedisError

    try:
        yield
    except (RedisError, RedisClusterException) as error:
        raise translated(error) from error


def translated(error: Exception) -> StoreError | StoreFull:
    """Returns this package's error for one of redis-py's.

    Args:
        error: What redis-py raised.
    """
    from redis import exceptions as theirs

    text = str(error)
    if isinstance(error, theirs.OutOfMemoryError) or text.startswith("OOM "):
        return StoreFull(
            "Redis has no memory left (maxmemory), so that nothing more is stored. What was stored "
            "before is unharmed; delete sessions, raise maxmemory, or keep large states in a "
            "directory (blobs=)."
        )
    if text.startswith("MISCONF"):
        return StoreFull(
            f"Redis cannot write to its disk, so that nothing more is stored: {text}. What was "
            "stored before is unharmed; make room there."
        )
    for kind, said in _SAID.items():
        if isinstance(error, getattr(theirs, kind, ())):
            return StoreError(f"{said} ({text})")
    return StoreError(f"Redis refused a command: {text}")


_CLUSTER = (
    "This Redis is a cluster, and the key lies on another of its machines: name that machine, or "
    "use a Redis that is no cluster."
)
# A kind comes before what it is a kind of.
_SAID = {
    "ReadOnlyError": (
        "This Redis has become a replica, which takes no commits: name the primary, and look at "
        "the session's head before you commit again."
    ),
    "BusyLoadingError": "Redis is still loading what it has on its disk: try again in a moment.",
    "AuthenticationError": "Redis does not know this user or password: see the URL.",
    "AuthorizationError": "Redis does not let this user in: see the URL.",
    "NoPermissionError": "Redis does not let this user do that: see ACL LIST.",
    "MaxConnectionsError": "This process has as many connections to Redis as its URL allows.",
    "MasterDownError": "This replica has lost its primary: name the new primary.",
    "ClusterDownError": "The cluster of this Redis is down: try again when it is whole.",
    "MovedError": _CLUSTER,
    "AskError": _CLUSTER,
    "ClusterCrossSlotError": _CLUSTER,
    "TimeoutError": (
        "Redis gave no answer in time, and whether the command was done is not known: look at the "
        "session's head, or raise timeout_seconds."
    ),
    "ConnectionError": (
        "The connection to Redis is lost or cannot be made, and whether a command on its way was "
        "done is not known: look at the session's head before you commit again."
    ),
}
