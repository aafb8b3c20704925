"""The secret that a store keys its references with: made once, and never made again.

The easy mistake is to make a new one where the old one is lost: every reference that was ever
given out would then name nothing, without a word.
"""

from __future__ import annotations

import secrets

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.backend import Transaction

FORMAT = 1
"""Version of the rows as a whole; a store of a later one is refused."""

_KEY_BYTES = 32


def store_secret(changes: Transaction) -> bytes:
    """Returns the store's secret; makes one in a store that is empty.

    Raises:
        StoreError: It is lost or was changed, or the store is of a later format.
    """
    data = changes.get(rows.ABOUT_KEY)
    if data is None:
        if changes.scan(b"", b"\xff", limit=1):
            raise StoreError(
                "The store's secret is lost, so that none of its references means anything: "
                "restore it from a copy, or use another directory."
            )
        key = secrets.token_bytes(_KEY_BYTES)
        body = {"format": FORMAT, "key": key.hex()}
        changes.put(rows.ABOUT_KEY, rows.pack(rows.ABOUT_KEY, body))
        return key
    try:
        body_found = rows.Body(rows.ABOUT_KEY, rows.unpack(rows.ABOUT_KEY, data).body)
        version, key = body_found.count("format"), bytes.fromhex(body_found.text("key"))
    except (StateCorrupt, ValueError) as error:
        raise StoreError(
            f"The store's secret was changed: restore it from a copy. {error}"
        ) from error
    if version != FORMAT or len(key) != _KEY_BYTES:
        raise StoreError(
            f"The store has format version {version}; this release reads {FORMAT}: upgrade "
            "langchain-rwkv-state, or use another directory."
        )
    return key
