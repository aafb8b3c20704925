"""Salts keep tenants apart in the prefix cache: digests of them, and nothing else, are written."""

from __future__ import annotations

import hashlib
import re

_HIDDEN = "salt:"
_HIDDEN_SALT = re.compile(r"salt:[0-9a-f]{32}")


def hidden_salt(salt: str) -> str:
    """Returns a salt in a form that may be seen: in a repr, a pickle, a trace.

    It keeps apart what the salt itself keeps apart, and hiding it again changes nothing.

    Example:
        >>> hidden_salt("tenant")
        'salt:1597ed261d4a2146280efb1e9d548f75'
        >>> hidden_salt(hidden_salt("tenant")) == hidden_salt("tenant")
        True
    """
    return _HIDDEN + salt_digest(salt)


def salt_digest(salt: str | None) -> str:
    """Returns the digest under which a salt is known; the salt itself is written nowhere."""
    if not salt:
        return ""
    if _HIDDEN_SALT.fullmatch(salt):
        return salt.removeprefix(_HIDDEN)
    return hashlib.blake2b(
        salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"rwkv-salt"
    ).hexdigest()
