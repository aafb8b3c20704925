"""Opens the socket that a server listens at, before a model is loaded: an address may be taken."""

from __future__ import annotations

import os
import socket


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket at an address; connections are taken once the server has started.

    Raises:
        OSError: The address cannot be had.
    """
    host = host.strip("[]")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows it would let two programs have one address
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, f"{host}, port {port} cannot be had: {error.strerror}"
        ) from error
    bound.setblocking(False)
    return bound


def address(bound: socket.socket) -> str:
    """Returns the address of a socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
