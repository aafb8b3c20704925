"""Draws stores and sessions for a notebook: who is there, how long, and until when.

Looking is no use of a session, and of a large store only the sessions that are shown are looked at.
Nothing here raises, since a notebook shows the error in the place of the value: a store that is
closed or damaged gives a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state._text import ago, short, size, until

if TYPE_CHECKING:
    from langchain_rwkv_state.store.records import SessionInfo
    from langchain_rwkv_state.store.verbs import StoreVerbs

_COLUMNS = (
    *("session", "model", "turns", "tokens", "size"),
    *("last turn", "expires", "head", "unread"),
)


def store_html(store: StoreVerbs) -> str:
    """Returns a table of a store's sessions, or a sentence where it cannot be read."""
    try:
        names = store.sessions()
    except Exception as error:  # noqa: BLE001 # whatever it is, it is shown
        return markup.sentence(f"{store!r}: {error}")
    return markup.table(repr(store), _COLUMNS, _rows(store, names), len(names))


def session_html(store: StoreVerbs, session: str) -> str:
    """Returns a table of what is known of a session, or a sentence where it cannot be read."""
    try:
        info = store.session(session, renew=False)
    except Exception as error:  # noqa: BLE001 # whatever it is, it is shown
        return markup.sentence(f"The session {session!r} of {store!r}: {error}")
    if info is None:
        return markup.sentence(f"The session {session!r} of {store!r} has not begun.")
    names, cells = _COLUMNS[1:], _cells(info)[1:]
    known = dict(zip(names, cells, strict=True))
    return markup.facts(f"session {session}", {**known, "store": repr(store)})


def _rows(store: StoreVerbs, names: list[str]) -> Iterator[tuple[object, ...]]:
    for name in names:
        try:
            info = store.session(name, renew=False)
        except Exception:  # noqa: BLE001 # one that is damaged hides no other
            yield name, "damaged", *[""] * (len(_COLUMNS) - 2)
            continue
        yield _cells(info) if info else (name, "gone", *[""] * (len(_COLUMNS) - 2))


def _cells(info: SessionInfo) -> tuple[object, ...]:
    now = time.time()
    return (
        info.session,
        info.model or "-",
        info.n_turns,
        info.n_tokens,
        size(info.nbytes),
        ago(info.updated_seconds, now),
        until(info.expires_seconds, now),
        short(info.head),
        len(info.unread),
    )
