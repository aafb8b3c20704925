"""Starts the server: checks whether it may, and runs it in this process or in several.

Off loopback it asks for keys, unless it was told that somebody else does.
"""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Callable

from langchain_rwkv_state.serve.listening import address, listening
from langchain_rwkv_state.serve.settings import ServeError, ServeSettings


def serve(
    settings: ServeSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    allow_no_keys: bool = False,
    on_listening: Callable[[str], None] = lambda _: None,
) -> bool:
    """Serves until a signal says to end (SIGTERM or SIGINT; a second one ends at once).

    SIGHUP reads the file of keys anew.

    Args:
        settings: What is served, and to whom.
        host: Where to listen.
        port: On which port; 0 for one that is free.
        workers: How many processes serve.
        allow_no_keys: Whether to serve everybody who reaches `host` where that is not this machine
            alone: for a proxy that asks for keys itself.
        on_listening: Called with the address once requests are taken.

    Returns:
        Whether all that ran ended by itself, or in time with an error.

    Raises:
        ServeError: It cannot be started as it was told to.
        RWKVStateError: A model or a store cannot be had.
        OSError: The address cannot be had.

    Example:
        >>> serve(ServeSettings(model="demo", store="states"))  # doctest: +SKIP
    """
    if settings.api_key_file is None and not allow_no_keys and not is_loopback(host):
        raise ServeError(
            f"{host} is reached by other machines, and nobody is asked for a key: pass "
            "--api-key-file FILE, or listen at 127.0.0.1; with a proxy before it that asks for "
            "keys itself, --no-keys."
        )
    if workers < 1:
        raise ServeError(f"{workers} workers cannot serve: give a number from 1 on.")
    with listening(host, port) as bound:
        if workers > 1:
            from langchain_rwkv_state.serve.workers import Workers

            return Workers(settings, workers, bound, on_listening).run()
        from langchain_rwkv_state.serve.app import make_app
        from langchain_rwkv_state.serve.running import run

        app = make_app(settings)
        app.state.tenants.load()  # here an error is a sentence
        return run(app, bound, lambda: on_listening(address(bound)))


def require_extra() -> None:
    """Checks that what the server is made of is there.

    Raises:
        ServeError: It is not; the message says how it comes.
    """
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise ServeError(
                f"The server needs {name}, which is not installed: "
                'pip install "langchain-rwkv-state[serve]".'
            )


def is_loopback(host: str) -> bool:
    """Says whether an address is reached from this machine alone.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
