"""Hides passwords in URLs, and finds what a hidden one stands for. Texts in, texts out.

A URL as it is shown is a URL still: with ``***`` in the place of its password, which is looked up
when it is used. The easy mistake is to hide what a URL library takes for the password: one that was
not quoted may hold any character, so all from the user's name to the last @ is hidden.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from langchain_rwkv_state.errors import StoreError

PASSWORD_VARIABLE = "RWKV_STATE_PASSWORD"  # noqa: S105 # where it is, not what it is
"""Holds what ``***`` stands for in a store's URL."""

HIDDEN = "***"
_USER_INFO = re.compile(r"(?<=://)([^/@:]*):.*@")


def hidden(url: str) -> str:
    """Returns a URL without passwords: its own, and those of URLs behind its ``?``.

    Example:
        >>> hidden("redis://me:secret@host/0?tenant=a")
        'redis://me:***@host/0?tenant=a'
    """
    rest, mark, query = url.partition("?")
    parts = []
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        plain = unquote(value)
        shown = _hidden(plain)
        parts.append(name + equals + (value if shown == plain else quote(shown, safe=":/*@")))
    return _hidden(rest) + mark + "&".join(parts)


def _hidden(url: str) -> str:
    return _USER_INFO.sub(rf"\1:{HIDDEN}@", url)


def filled(url: str) -> str:
    """Returns a URL with the password that its ``***`` stands for.

    Raises:
        StoreError: There is none.
    """
    found = _USER_INFO.search(url)
    if found is None or found[0] != f"{found[1]}:{HIDDEN}@":
        return url
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password:
        raise StoreError(
            f"The password of {url} was left out where the URL was written down: set "
            f"{PASSWORD_VARIABLE}, or pass the whole URL as store=."
        )
    return f"{url[: found.start()]}{found[1]}:{quote(password, safe='')}@{url[found.end() :]}"
