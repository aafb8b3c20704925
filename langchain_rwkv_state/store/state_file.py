"""What the file of a stored state must be: there, whole, and of this store.

Bytes in, a state out; it reads no file. The easy mistake is to believe a right checksum: a whole
file of another store has one too, and would pass for what it is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store.rows import StateRow

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState


def checked_state(data: bytes | None, row: StateRow, key: bytes) -> RWKVState:
    """Returns the state in a file.

    Args:
        data: What the file holds; ``None`` where there is none.
        row: The state's row.
        key: The store's secret.

    Raises:
        StateCorrupt: The file is missing, was changed, or holds another state.
    """
    if data is None:
        raise StateCorrupt(
            f"The file {row.blob} of the state {row.ref} is missing, though nobody deleted the "
            "state."
        )
    try:
        state = states.decode(data, ref=row.ref).state
    except StateCorrupt as error:
        raise StateCorrupt(f"The file of the state {row.ref} cannot be used: {error}") from error
    if states.reference(state.derivation, key) != row.ref:
        raise StateCorrupt(f"The file of the state {row.ref} holds a state of another store.")
    return state
