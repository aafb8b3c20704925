"""What all store objects over one place share: its secret, rows and files, staged states, threads.

Two objects that name the same directory mean the same store: what one staged, the other commits,
and a turn that one could not store the other stores. The easy mistake is to tie this to one of the
objects: LangChain makes and drops them as it likes, and an answer stands on what is staged here.
The secret that keys a store's references is made once: where it is lost, none is made in its place,
or every reference that was ever given out would name nothing, without a word.
"""

from __future__ import annotations

import json
import os
import secrets
import threading

from langchain_rwkv_state._registry import Registry
from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.state import CODECS, LOSSY, CodecName
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.backend import Backend, change, look
from langchain_rwkv_state.store.base import Beside
from langchain_rwkv_state.store.clock import StoreClock
from langchain_rwkv_state.store.records import Body
from langchain_rwkv_state.store.schema import FORMAT, LOST
from langchain_rwkv_state.store.staging import StagedFiles, Staging
from langchain_rwkv_state.store.tables import Changes, Tables
from langchain_rwkv_state.store.verbs import Threads

_KEY_BYTES = 32


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
        about = Body("about row", json.loads(data))
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


class Resources:
    """One store as a process has it open.

    Attributes:
        backend: Rows and files.
        files: For staged states that memory has no room for; ``None`` where they stay in it.
        staging: Staged states.
        threads: In which async verbs run.
        beside: See `StateStore.beside`.
        about: The store's secret and codec, once read.
        clock: The store's clock, where it goes by the machine's own.
        is_told: Whether it was said that staged states outgrow memory.
    """

    def __init__(self, backend: Backend, files: StagedFiles | None = None) -> None:
        self.backend = backend
        self.files = files
        self._room = os.getpid(), threading.Lock()
        self.staging = Staging(files.drop) if files is not None else Staging()
        self.threads = Threads()
        self.beside: dict[str, Beside] = {}
        self.about: tuple[bytes, CodecName] | None = None
        self.clock: StoreClock | None = None
        self.is_told = False

    @property
    def staging_room(self) -> threading.Lock:
        """Held while a state is staged and room is made for it; a forked child has one of its own.

        No `ForkLock`: others are taken while it is held.
        """
        if self._room[0] != os.getpid():
            self._room = os.getpid(), threading.Lock()
        return self._room[1]

    @property
    def is_needed(self) -> bool:
        """Whether something stands on it though no store object does: an answer just given."""
        return self.staging.holds_states or any(k.is_needed for k in self.beside.values())

    def close(self) -> None:
        """Lets go of everything; staged states end with it."""
        self.threads.close()
        self.staging.clear()
        if self.files is not None:
            self.files.close()
        self.backend.close()


OPEN_STORES: Registry[Resources] = Registry(
    close=Resources.close, stays=lambda each: each.is_needed
)
"""Every store on disk that this process has open, by its directory."""
