"""What a store is for good: the secret that keys its references, and its codec, made once.

The easy mistake is to make a new one where the old one is lost: every reference that was ever
given out would then name nothing, without a word.
"""

from __future__ import annotations

import json
import secrets

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.state import CODECS, LOSSY, CodecName
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.backend import Backend, change, look
from langchain_rwkv_state.store.records import Body
from langchain_rwkv_state.store.tables import Changes, Tables

FORMAT = 2
"""Version of the tables as a whole; a store of a later one is refused."""

_KEY_BYTES = 32
LOST = (
    "The store's secret is lost, so that none of its references means anything, though states are "
    "stored beside it: restore the whole directory from a copy (cache.db-wal with it), or use "
    "another directory."
)


def open_secret(backend: Backend, codec: CodecName | None) -> tuple[bytes, CodecName]:
    """Returns a store's secret and its codec; makes the secret in a store that is empty.

    Args:
        backend: The store's rows and blobs.
        codec: How states are to become bytes; ``None`` for as the store was made.

    Raises:
        StoreError: The secret is lost or was changed, the store is of a later format, or its states
            are kept by another lossy codec, or by none.
    """

    def work(changes: Changes) -> tuple[bytes, CodecName]:
        found = _found(changes, codec)
        if found is not None:
            return found
        # Rows may be lost together with it, as with a log of changes that was deleted.
        if any(map(changes.any_row, rows.TABLES)) or next(iter(backend.blobs()), None) is not None:
            raise StoreError(LOST)
        key = secrets.token_bytes(_KEY_BYTES)
        made = codec or "exact"
        changes.note(
            "about", json.dumps({"format": FORMAT, "key": key.hex(), "codec": made}).encode()
        )
        return key, made

    if not backend.read_only:
        return change(backend, 0.0, work)
    found = look(backend, 0.0, lambda tables: _found(tables, codec))
    if found is None:
        raise StoreError(LOST)
    return found


def _found(tables: Tables, codec: CodecName | None) -> tuple[bytes, CodecName] | None:
    """Returns the secret and the codec that are stored; ``None`` for none."""
    try:
        data = tables.meta("about")
        if data is None:
            return None
        about = Body("about row", dict(json.loads(data)))
        version, key = about.count("format"), bytes.fromhex(about.text("key"))
        named = about.text("codec")
    except (StateCorrupt, ValueError, TypeError) as error:
        raise StoreError(
            f"The store's secret was changed: restore it from a copy. {error}"
        ) from error
    if version != FORMAT or len(key) != _KEY_BYTES:
        raise StoreError(
            f"The store has format version {version}; this release reads {FORMAT}: upgrade "
            "langchain-rwkv-state, or use another directory."
        )
    return key, _codec(named, codec)


def _codec(named: str, wanted: CodecName | None) -> CodecName:
    """Returns the codec to write with, in a store that names one.

    Lossless ones may follow one another: each file says which it is of.
    """
    found = next((each for each in CODECS if each == named), None)
    if found is None:
        raise StoreError(
            f"The store keeps its states by the codec {named!r}, which this release does not have: "
            "upgrade langchain-rwkv-state."
        )
    if wanted is None or wanted == found:
        return found
    if {wanted, found} & LOSSY:
        raise StoreError(
            f"The store keeps its states by the codec {found!r}, so that it cannot be opened with "
            f"{wanted!r}: what is lossy is so from a store's beginning. Leave codec out, or use "
            "another directory."
        )
    return wanted
