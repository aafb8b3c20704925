"""Searches every byte below a directory: for texts, token ids, references and states."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from pathlib import Path


def forms_of_ids(ids: Sequence[int]) -> dict[str, bytes]:
    """Returns how ids may lie on a disk: as words, and in base64 at each of its three offsets."""
    words = struct.pack(f"<{len(ids)}I", *ids)
    forms = {"ids": words}
    for shift in range(3):
        coded = base64.b64encode(bytes(shift) + words)
        forms[f"ids in base64 ({shift})"] = coded[4 if shift else 0 : len(coded) // 4 * 4 - 4]
    return forms


def forms_of_ref(ref: str) -> dict[str, bytes]:
    """Returns how a reference may lie on a disk."""
    return {"a reference": ref[-64:].encode(), "its digest": bytes.fromhex(ref[-64:])}


def found_in(path: Path, wanted: dict[str, bytes]) -> list[str]:
    """Returns what of that is found in the names or the bytes of any file, and where."""
    assert all(len(each) >= 8 for each in wanted.values()), "what is shorter is found by chance"
    found = []
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        data = str(file.relative_to(path)).encode() + b"\x00" + file.read_bytes()
        found += [f"{what}: {file.name}" for what, each in wanted.items() if each in data]
    return found
