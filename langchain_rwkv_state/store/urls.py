"""Reads what names a store, a directory or a URL, and opens it: `open_store`.

One text says which store is meant and how it is opened, so that it fits where a text does: a
constructor, ``--store``, an environment variable, a file of settings. Nothing here connects before
`open_store`. The easy mistake is to show a URL as it was given: it may hold a password, so what is
printed, traced, serialised or put into an error is `StoreUrl.shown`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from langchain_rwkv_state.store.base import StateStore
from langchain_rwkv_state.store.disk import DIRECTORY_VARIABLE, DiskStateStore
from langchain_rwkv_state.store.memory import MemoryStateStore
from langchain_rwkv_state.store.passwords import HIDDEN, PASSWORD_VARIABLE, filled, hidden
from langchain_rwkv_state.store.settings import StoreSettings

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # one letter is a drive of Windows
_DRIVE = re.compile(r"/[A-Za-z]:(/|$)")


def _flag(text: str) -> bool:
    found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in found:
        raise ValueError("say true or false")
    return found[text.lower()]


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError("give a whole number")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError("give a number of seconds")
    return float(text)


_Readers = Mapping[str, Callable[[str], Any]]

_ANYWHERE: _Readers = {
    "ttl": str,
    "sliding": _flag,
    "history": _whole,
    "log": str,
    "size_limit": _whole,
    "codec": str,
    "staged_bytes": _whole,
}
_ON_DISK: _Readers = {
    **_ANYWHERE,
    "timeout_seconds": _seconds,
    "read_only": _flag,
    "create": _flag,
}
_IN_REDIS: _Readers = {
    **_ANYWHERE,
    "tenant": str,
    "blobs": str,
    "large_bytes": _whole,
    "persistence": str,
    "timeout_seconds": _seconds,
}
_OF_THE_CLIENT = frozenset(
    {
        "db",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
"""What redis-py reads of a URL, and gets with it."""

SCHEMES: Mapping[str, _Readers] = {
    "redis": _IN_REDIS,
    "rediss": _IN_REDIS,
    "unix": _IN_REDIS,
    "file": _ON_DISK,
    "memory": _ANYWHERE,
}
"""What a store's URL may begin with, and the settings that it may have behind a ``?``."""

_REDIS = frozenset(("redis", "rediss", "unix"))


@dataclass(frozen=True, repr=False)
class StoreUrl:
    """A store's URL, read and checked; its repr shows no password.

    Attributes:
        scheme: What it begins with, in small letters.
        text: As it was given.
        shown: The same for people, logs and files: ``***`` stands for a password.
        place: What the store itself is given: a directory, a name, a URL without our settings.
        settings: What stands behind the ``?``.
    """

    scheme: str
    text: str
    shown: str
    place: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_redis(self) -> bool:
        """Whether it names a Redis server."""
        return self.scheme in _REDIS

    @classmethod
    def read(cls, text: str) -> StoreUrl:
        """Reads a URL.

        Args:
            text: A text of which `is_url` is true.

        Raises:
            ValueError: Its scheme or a setting is unknown, or something in it is not possible; the
                message holds no password.
        """
        found = _SCHEME.match(text)
        scheme = found[1].lower() if found else ""
        if scheme not in SCHEMES:
            raise ValueError(_unknown_scheme(scheme))
        rest, _, query = text.partition("?")
        _require_no_fragment(scheme, text)
        if scheme in _REDIS:
            _check_server(scheme, rest)
        settings, passed = _settings(scheme, query)
        if scheme in _REDIS:
            place = rest + (f"?{urlencode(passed)}" if passed else "")
        else:
            place = _directory(rest) if scheme == "file" else unquote(_behind(rest))
        known = {each.name for each in fields(StoreSettings)}
        StoreSettings(**{name: value for name, value in settings.items() if name in known})
        return cls(scheme, text, hidden(text), place, settings)

    def open(self, **settings: Any) -> StateStore:
        """Opens the store.

        Args:
            settings: Of the store's class; one that the URL has, too, counts as given here.

        Raises:
            StoreError: The store cannot be used.
            ImportError: An extra is missing; the message names it.
        """
        wanted = {**self.settings, **settings}
        if self.scheme == "file":
            return DiskStateStore(self.place, **wanted)
        if self.scheme == "memory":
            return MemoryStateStore.named(self.place, **wanted)
        opened: StateStore = _redis_class()(filled(self.place), **wanted)
        return opened

    def __repr__(self) -> str:
        return f"StoreUrl({self.shown!r})"

    def __str__(self) -> str:
        return self.shown


def is_url(place: object) -> bool:
    """Says whether a store is named by a URL: ``word:``, of two letters or more.

    Example:
        >>> is_url("redis://localhost"), is_url("states"), is_url("C:/states")
        (True, False, False)
    """
    return isinstance(place, str) and _SCHEME.match(place) is not None


def environment_url() -> StoreUrl | None:
    """Returns the user's own store, where ``$RWKV_STATE_DIR`` names one by a URL.

    Raises:
        ValueError: As `StoreUrl.read`.
    """
    named = os.environ.get(DIRECTORY_VARIABLE, "")
    return StoreUrl.read(named) if is_url(named) else None


def open_store(place: str | os.PathLike[str] | None = None, **settings: Any) -> StateStore:
    """Opens a store by its name: a URL, a directory, or ``None`` for the user's own.

    - ``redis://HOST:6379/0``, ``rediss://`` for TLS, ``unix:///SOCKET``: a Redis server, as
      `RedisStateStore`; with the extra ``[redis]``.
    - ``file:DIR`` and ``file:///DIR``: a directory, as `DiskStateStore`.
    - ``memory:`` and ``memory:NAME``: memory of this process, as `MemoryStateStore`, to its end.
    - Anything else is a directory. One that is called as a URL begins (``a:b``) is ``./a:b``.

    Settings of the store may stand in the URL, as in
    ``redis://localhost/0?tenant=alice&blobs=/mnt/share&ttl=7d``. A password ``***``, as it is in
    whatever shows a URL, is taken from ``$RWKV_STATE_PASSWORD``.

    Args:
        place: The store's name.
        settings: Of the store's class, such as ``ttl="7d"``; one that the URL has, too, counts as
            given here.

    Returns:
        The store, open. Whoever opens one name twice has one store in two objects.

    Raises:
        ValueError: The URL's scheme or a setting in it is unknown, or a value is not possible.
        StoreError: The store cannot be used.
        ImportError: An extra is missing; the message names it.

    Example:
        >>> with open_store("memory:example?ttl=7d") as store:
        ...     store.sessions()
        []
    """
    if place is None:
        url = environment_url()
    elif isinstance(place, str) and is_url(place):
        url = StoreUrl.read(place)
    else:
        url = None
    return DiskStateStore(place, **settings) if url is None else url.open(**settings)


def _settings(scheme: str, query: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns a URL's settings, and what the client is to get.

    Raises:
        ValueError: One is unknown, doubled or not possible.
    """
    readers = SCHEMES[scheme]
    passed = _OF_THE_CLIENT if scheme in _REDIS else frozenset()
    ours: dict[str, Any] = {}
    others: dict[str, str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in ours or name in others:
            raise ValueError(f"The store's URL has the setting {name!r} twice: give it once.")
        if name in passed:
            others[name] = text
            continue
        if name not in readers:
            raise ValueError(_unknown_setting(scheme, name, [*readers, *sorted(passed)]))
        try:
            ours[name] = readers[name](text)
        except ValueError as error:
            raise ValueError(f"The store's URL has {name}={text!r}: {error}.") from None
    return ours, others


def _unknown_scheme(scheme: str) -> str:
    known = ", ".join(f"{each}:" for each in SCHEMES)
    near = difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}:?" if near else ""
    return (
        f"No store's URL begins with {scheme!r}: those that there are begin with {known}.{hint} A "
        f"directory that is called so is written './{scheme}:...'."
    )


def _unknown_setting(scheme: str, name: str, known: list[str]) -> str:
    if not re.fullmatch(r"\w{1,40}", name):  # it may be what stands behind a ? in a password
        return (
            f"Behind the '?' of a store's URL that begins with {scheme}: stands something that is "
            "no setting: settings are written NAME=VALUE, with & between them."
        )
    if name in ("password", "username"):
        return (
            f"A store's URL has no setting {name!r}: write {scheme}://USER:PASSWORD@HOST, or "
            f"{scheme}://USER:{HIDDEN}@HOST and set {PASSWORD_VARIABLE}."
        )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}."
    return f"A store's URL that begins with {scheme}: has no setting {name!r}: {hint}"


def _require_no_fragment(scheme: str, text: str) -> None:
    if "#" in text:
        raise ValueError(
            f"The {scheme}: URL of a store holds a '#': write it as %23, also in a password."
        )


def _check_server(scheme: str, rest: str) -> None:
    """Checks the part of a Redis URL before its settings.

    Raises:
        ValueError: Something is not possible. Nothing of it is in the message: a password that was
            not quoted may stand anywhere.
    """
    parts = urlsplit(rest)
    usual = "unix:///PATH/TO/SOCKET?db=0" if scheme == "unix" else f"{scheme}://HOST:6379/0"
    try:
        sound = rest.partition(":")[2].startswith("//") and parts.port != 0
    except ValueError:
        sound = False
    if scheme == "unix":
        sound = sound and len(parts.path) > 1 and not parts.hostname
    else:
        named = bool(parts.hostname) or not parts.netloc
        sound = sound and named and re.fullmatch(r"(/\d*)?", parts.path) is not None
    if not sound:
        raise ValueError(
            f"The {scheme}: URL of a store cannot be read: it is to be as {usual}, and in a user's "
            "name or a password '/', ':', '@', '?' and '#' are written %2F, %3A, %40, %3F and %23."
        )


def _directory(rest: str) -> str:
    """Returns the directory of a ``file:`` URL.

    Raises:
        ValueError: It names none, or another machine's.
    """
    named = rest.partition(":")[2]
    if named.startswith("//"):
        host, slash, path = named[2:].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(
                f"The store's URL {rest!r} names a directory of another machine, {host!r}: write "
                "file:///DIR for one of this machine, file:DIR for one in the working directory."
            )
        named = slash + path
    if _DRIVE.match(named):
        named = named[1:]
    if not named:
        raise ValueError("The store's URL file: names no directory: write file:DIR.")
    return unquote(named)


def _behind(rest: str) -> str:
    return rest.partition(":")[2].removeprefix("//")


def _redis_class() -> Callable[..., StateStore]:
    from langchain_rwkv_state.store.redis.store import RedisStateStore

    found: Callable[..., StateStore] = RedisStateStore
    return found
