"""Reads the file of API keys, and finds whose a key is.

A line is a tenant's name, its key and, where they differ from the server's, its limits. Two keys of
one name are one tenant, so that a key can be changed for another. A key is kept as a digest under a
secret of this process, and looked up by that: how long it takes tells nothing of the keys. The easy
mistake is to put a line of the file into an error: it holds a key.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from langchain_rwkv_state.serve.settings import Limits, ServeError
from langchain_rwkv_state.serve.sizes import read_size

logger = logging.getLogger("langchain_rwkv_state.serve")

METRICS = "metrics"
"""The name whose key reads ``/metrics``, and nothing else."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LIMITS = {"requests": "requests", "tokens_per_minute": "tokens_per_minute", "body": "body_bytes"}
_SHORT = 16  # characters; fewer can be guessed


@dataclass(frozen=True)
class Keys:
    """Who may ask, by key.

    Attributes:
        limits: Of each tenant, by its name.
    """

    limits: Mapping[str, Limits]
    _tenants: Mapping[bytes, str] = field(repr=False)
    _secret: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str], default: Limits) -> Keys:
        """Reads a file of keys.

        Args:
            path: The file.
            default: The limits of those whose line names none.

        Raises:
            ServeError: It cannot be read, or a line of it; the message holds no key.
        """
        file = Path(path).expanduser()
        try:
            text = file.read_text("utf-8")
            mode = file.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"The file of API keys cannot be read: {error}.") from error
        if os.name == "posix" and mode & 0o077:
            logger.warning(
                "%s can be read or changed by others than its owner: chmod 600 %s.", file, file
            )
        secret = secrets.token_bytes(32)
        limits: dict[str, Limits] = {}
        tenants: dict[bytes, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#", 1)[0].split()
            if words:
                _read_line(f"{file}, line {number}", words, default, limits, tenants, secret)
        if not limits.keys() - {METRICS}:
            raise ServeError(f"{file} holds no key: write a line NAME KEY for each tenant.")
        return cls(limits, tenants, secret)

    def tenant_of(self, key: str) -> str | None:
        """Returns the name that goes with a key; ``None`` for a key of nobody's.

        Example:
            >>> import tempfile
            >>> with tempfile.NamedTemporaryFile("w+") as file:
            ...     _ = file.write("alice sk-1234567890abcdef requests=8")
            ...     file.flush()
            ...     keys = Keys.read(file.name, Limits())
            >>> keys.tenant_of("sk-1234567890abcdef"), keys.tenant_of("sk-1234567890abcdee")
            ('alice', None)
        """
        digest = sha256(key.encode("utf-8", "replace")).digest()
        return self._tenants.get(_hidden(digest, self._secret))


def _read_line(
    where: str,
    words: list[str],
    default: Limits,
    limits: dict[str, Limits],
    tenants: dict[bytes, str],
    secret: bytes,
) -> None:
    """Takes a line in.

    Raises:
        ServeError: It is wrong.
    """
    name, *rest = words
    if not _NAME.fullmatch(name):
        raise ServeError(
            f"{where}: a name is 1 to 64 letters, digits, '-' and '_', and begins with a letter or "
            "a digit."
        )
    if not rest or "=" in rest[0].rstrip("="):
        raise ServeError(f"{where}: {name} has no key: write NAME KEY [requests=8] and so on.")
    for other in limits:
        # Directories bear these names, and some file systems do not tell such apart.
        if other != name and other.casefold() == name.casefold():
            raise ServeError(f"{where}: {name} and {other} differ in capitals alone.")
    hidden = _hidden(_digest(rest[0], where, name), secret)
    if tenants.setdefault(hidden, name) != name:
        raise ServeError(f"{where}: the key of {name} is that of {tenants[hidden]}, too.")
    found = replace(default, **_limits(rest[1:], where))
    if limits.setdefault(name, found) != found:
        raise ServeError(
            f"{where}: {name} has other limits in a line before: they are the tenant's, not the "
            "key's. Give both lines the same."
        )


def _digest(key: str, where: str, name: str) -> bytes:
    """Returns the digest of a key, or the one that the file holds in place of it.

    Raises:
        ServeError: It holds something else.
    """
    found = _DIGEST.fullmatch(key)
    if found:
        return bytes.fromhex(found[1])
    if key.startswith("sha256:"):
        raise ServeError(f"{where}: what follows sha256: is 64 hexadecimal digits.")
    if len(key) < _SHORT:
        logger.warning(
            "%s: the key of %s has %d characters, which can be guessed: make one by "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`.",
            *(where, name, len(key)),
        )
    return sha256(key.encode()).digest()


def _hidden(digest: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, digest, "sha256")


def _limits(words: list[str], where: str) -> dict[str, Any]:
    """Reads limits.

    Raises:
        ServeError: There is no such limit, or it cannot have that value.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in _LIMITS:
            raise ServeError(
                f"{where}: {name!r} is no limit: there are requests=8, tokens_per_minute=60000 and "
                "body=4MB. A key has no spaces."
                if equals
                else f"{where}: what follows a key are limits such as requests=8; a key has no "
                "spaces."
            )
        try:
            found[_LIMITS[name]] = read_size(value) if name == "body" else _count(value)
        except ValueError as error:
            raise ServeError(f"{where}: {name}: {error}") from error
    return found


def _count(text: str) -> int | None:
    if text == "none":
        return None
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise ValueError(f"{text!r} is no number from 1 on: give one, or none for no limit.")
    return int(text)
