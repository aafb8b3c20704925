"""Makes bundles for tests: a small one, and forged ones with a right digest.

A wrong digest is refused before anything else is looked at, so a forged file needs a right one.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_rwkv_state.state import StateLayout
from langchain_rwkv_state.store import MemoryStateStore
from tests.helpers.states import SetClock, random_state

TINY = StateLayout.of(7, n_layer=1, n_embd=4, head_size=4)
MARK = b"langchain-rwkv-state-bundle/1 sha256:"


def small_bundle(path: Path, *, turns: int = 2) -> bytes:
    """Writes a session of tiny states to a bundle; returns the file's bytes."""
    with MemoryStateStore(clock=SetClock()) as store:  # one session gives one file
        head = None
        for number in range(turns):
            ref = store.stage(random_state([number] * (number + 1), layout=TINY), parent=head)
            store.commit("bob", ref, head)
            head = ref
        store.append_unread("bob", ['"x"'])
        store.export_session("bob", path)
    return path.read_bytes()


def sealed(data: bytes) -> bytes:
    """Returns a bundle with the digest that fits its other bytes."""
    end = len(data) - len(MARK) - 64
    return data[:end] + MARK + hashlib.sha256(data[:end]).hexdigest().encode()


def members(data: bytes) -> dict[str, bytes]:
    """Returns the members of a bundle by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forged(
    parts: list[tuple[str, bytes]],
    *,
    compression: int = zipfile.ZIP_STORED,
    comment: bytes = MARK + b"0" * 64,
) -> bytes:
    """Returns a ZIP of any members with a right digest."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts:
            about = zipfile.ZipInfo(name)
            about.filename = name  # which `ZipInfo` cuts at a zero byte
            archive.writestr(about, content, compression)
        archive.comment = comment
    return sealed(file.getvalue())


def with_manifest(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Returns a bundle whose `session.json` somebody changed."""
    parts = members(data)
    values = json.loads(parts.pop("session.json"))
    change(values)
    return forged([*parts.items(), ("session.json", json.dumps(values).encode())])
