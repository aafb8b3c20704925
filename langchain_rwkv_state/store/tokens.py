"""Token ids as texts, and how the origins of states join up: values in, values out.

Only stores with ``log="tokens"`` use this; their log is a transcript. The easy mistake is to join
two origins whose states do not meet: the later must start where the earlier ended.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store.records import Origin


def pack_tokens(tokens: Sequence[int]) -> str:
    """Returns token ids as a text."""
    return base64.b64encode(struct.pack(f"<{len(tokens)}I", *tokens)).decode()


def unpack_tokens(text: str) -> list[int]:
    """Reads what `pack_tokens` made.

    Raises:
        StateCorrupt: The text is something else.
    """
    try:
        data = base64.b64decode(text, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}I", data))
    except (binascii.Error, ValueError, struct.error) as error:
        raise StateCorrupt("The token ids of a stored state cannot be read.") from error


def joined(earlier: Origin, later: Origin) -> Origin:
    """Returns the origin of the later state, told from the earlier one's base."""
    tokens = unpack_tokens(earlier.tokens) + unpack_tokens(later.tokens)
    return Origin(earlier.base, pack_tokens(tokens), later.fingerprint, later.block)


def merged(ref: str, gone: Origin | None, kept: Origin | None) -> Origin | None:
    """Returns the origin of an entry after the entry before it, of the state `ref`, went.

    Args:
        ref: The state of the entry that went.
        gone: Its origin.
        kept: The origin of the entry that stays.
    """
    if gone is None or kept is None or kept.base != ref:
        return kept
    return joined(gone, kept)
