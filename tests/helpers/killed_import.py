"""Kills imports at one step after another: ``python -m tests.helpers.killed_import``.

Takes a bundle and a folder. For each step of an import (a state's bytes written, a transaction) it
forks a child that takes the bundle into a store of its own and is killed (SIGKILL) before that step
or right after it, until a child gets through. Writes how many children were killed. The parent
opens no store: a child must begin as a process does.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.store.disk_backend import DiskBackend


def _import(bundle: Path, store: Path, step: int, *, after: bool) -> None:
    """Takes a bundle in and dies at a step of that."""
    left = step

    def mortal(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = own(*args, **kwargs)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    with DiskStateStore(store) as opened:
        backend = opened._backend
        assert isinstance(backend, DiskBackend)
        for verb in ("write_blob", "transact"):
            setattr(backend, verb, mortal(getattr(backend, verb)))
        opened.import_session(bundle)


def main(bundle: Path, folder: Path) -> None:
    """Kills imports until one gets through."""
    killed = 0
    while True:
        step, after = divmod(killed, 2)
        child = os.fork()
        if child == 0:
            try:
                _import(bundle, folder / str(killed), step + 1, after=bool(after))
            except BaseException:
                traceback.print_exc()
                os._exit(2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.stdout.write(str(killed))
            sys.exit(os.WEXITSTATUS(status))
        killed += 1


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
