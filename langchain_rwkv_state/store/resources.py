"""What all store objects over one place share in a process: rows and files, staged states, threads.

Two objects that name the same directory mean the same store: what one staged, the other commits,
and a turn that one could not store the other stores. The easy mistake is to tie this to one of the
objects: LangChain makes and drops them as it likes, and an answer stands on what is staged here.
"""

from __future__ import annotations

import os
import threading

from langchain_rwkv_state._registry import Registry
from langchain_rwkv_state.state import CodecName
from langchain_rwkv_state.store.aio import Threads
from langchain_rwkv_state.store.backend import Backend
from langchain_rwkv_state.store.base import Beside
from langchain_rwkv_state.store.clock import StoreClock
from langchain_rwkv_state.store.staging import StagedFiles, Staging


class Resources:
    """One store as a process has it open.

    Args:
        backend: Rows and files.
        files: Where staged states go that memory has no room for; ``None`` where they stay in it.

    Attributes:
        backend: Rows and files.
        files: For staged states.
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


def _is_needed(resources: Resources) -> bool:
    return resources.is_needed


OPEN_STORES: Registry[Resources] = Registry(close=Resources.close, stays=_is_needed)
"""Every store on disk that this process has open, by its directory."""
