"""Lists the names of the codecs, and which of them lose digits; `packing` has what they do."""

from __future__ import annotations

from typing import Literal, get_args

CodecName = Literal["exact", "zstd", "fp16", "bf16", "int8", "int4"]
"""How states become bytes: the first two are lossless."""

CODECS: tuple[CodecName, ...] = get_args(CodecName)
LOSSY: frozenset[CodecName] = frozenset({"fp16", "bf16", "int8", "int4"})


def require_codec(codec: object) -> None:
    """Checks the name of a codec.

    Raises:
        ValueError: This release does not have it.
    """
    if codec not in CODECS:
        raise ValueError(
            f"The codec {codec!r} is not supported by this release, which has "
            f"{', '.join(map(repr, CODECS))}."
        )
