"""Says whether replicas can share a store: by its name, and by how many machines there are.

A store that each replica sees for itself would not fail: conversations would be gone whenever
another replica, or a replaced one, takes the next turn. So it is an error before the first request.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from langchain_rwkv_state.serve.settings import ServeError
from langchain_rwkv_state.store.urls import StoreUrl, is_url

_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1", re.IGNORECASE)
_ADVICE = "name a Redis that all of them reach, store=redis://HOST:6379/0"


def require_shared(store: str) -> None:
    """Checks that a store outlives a replica.

    Args:
        store: A directory or a URL.

    Raises:
        ServeError: It does not.
        ValueError: It is no store's name.
    """
    if not store:
        raise ServeError(
            f"The replicas need one store for all: {_ADVICE}, or on a single machine a directory."
        )
    if is_url(store) and StoreUrl.read(store).scheme == "memory":
        raise ServeError(
            f"{store!r} is a store of one process, which no other replica sees and which is gone "
            f"with it: {_ADVICE}, or on a single machine a directory."
        )


def require_reachable(store: str, nodes: int) -> None:
    """Checks that replicas on so many machines see one store.

    Args:
        store: A directory or a URL.
        nodes: How many machines of the cluster may have replicas.

    Raises:
        ServeError: Each would see one of its own.
    """
    if nodes > 1 and is_local(store):
        shown = StoreUrl.read(store).shown if is_url(store) else store
        raise ServeError(
            f"The store {shown!r} is another one on each machine, and this cluster has replicas on "
            f"{nodes}: {_ADVICE}."
        )


def is_local(store: str) -> bool:
    """Says whether a store's name means another store on another machine.

    Example:
        >>> is_local("/var/lib/states"), is_local("redis://localhost:6379/0")
        (True, True)
        >>> is_local("redis://redis:6379/0")
        False
    """
    if not is_url(store):
        return True
    url = StoreUrl.read(store)
    if not url.is_redis or url.scheme == "unix":
        return True
    return _LOOPBACK.fullmatch(urlsplit(url.place).hostname or "localhost") is not None


def whole_path(name: str, *, always: bool = False) -> str:
    """Returns a path from the root where a name is one of a file; any other name as it is.

    Args:
        name: A path, a URL, or a name such as ``demo``.
        always: Whether it is a path also where there is nothing yet.
    """
    if is_url(name):
        url = StoreUrl.read(name) if name.lower().startswith("file:") else None
        relative = url is not None and not Path(url.place).is_absolute()
        if url is None or not relative:
            return name
        _, mark, settings = name.partition("?")
        return f"file:{Path(url.place).resolve()}{mark}{settings}"
    path = Path(name).expanduser()
    return str(path.resolve()) if always or path.exists() else name
