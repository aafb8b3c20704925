"""What Windows and macOS lack, taken away here: stand-ins for machines that nobody has at hand."""

import errno
import fcntl
import importlib
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from langchain_rwkv_state import DiskStateStore, _files
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.runtime.native import build
from langchain_rwkv_state.store import disk_backend, staging
from tests.helpers.states import random_state

WITHOUT = """
import asyncio, concurrent.futures.thread, importlib, logging, os, pkgutil, random, signal, sys
import subprocess, tempfile, threading
import diskcache, huggingface_hub, langchain_core.language_models, langchain_core.runnables.history
import llguidance, platformdirs, rich.console, torch, typer, yaml

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "curses"):
    sys.modules[name] = None
for name in ("register_at_fork", "fork", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "fchmod", "link",
             "getuid", "geteuid", "sysconf", "uname", "sched_getaffinity", "pread", "statvfs"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "setitimer", "ITIMER_REAL"):
    delattr(signal, name)

import langchain_rwkv_state
for found in pkgutil.walk_packages(langchain_rwkv_state.__path__, "langchain_rwkv_state."):
    if not found.name.endswith(("_kernels", "recurrence_trial", "__main__")):
        importlib.import_module(found.name)
print(len([name for name in sys.modules if name.startswith("langchain_rwkv_state.")]))
"""


class Msvcrt:
    """Windows' locks of a file's bytes, as far as they are used, on this system's own."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.calls = 0

    def locking(self, handle: int, mode: int, nbytes: int) -> None:
        assert (mode, nbytes, os.lseek(handle, 0, os.SEEK_CUR)) == (self.LK_NBLCK, 1, 0)
        self.calls += 1
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


@pytest.fixture
def windows(monkeypatch):
    """A store's surroundings there; the rest of the process stays where it is."""
    msvcrt = Msvcrt()
    monkeypatch.setattr(_files, "_fcntl", None)
    monkeypatch.setattr(_files, "_msvcrt", msvcrt)
    monkeypatch.setattr(_files, "MOVABLE", False)
    monkeypatch.setattr(_files, "_OPENS_DIRECTORIES", False)
    monkeypatch.setitem(sys.modules, "resource", None)

    def link(path, target, *, follow_symlinks=True):
        if not follow_symlinks:
            raise NotImplementedError("link: follow_symlinks unavailable on this platform")
        return real(path, target)

    real = os.link
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "supports_follow_symlinks", os.supports_follow_symlinks - {real})
    return msvcrt


@pytest.mark.slow
def test_every_module_can_be_imported_where_posix_is_not():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


def test_a_store_on_windows_keeps_forks_rewinds_and_opens_again(windows, tmp_path):
    with DiskStateStore(tmp_path / "store") as store:
        refs = []
        for seed in range(2):
            refs.append(store.stage(random_state([seed])))
            store.commit("bob", refs[-1], parent=refs[-2] if seed else None)
        assert store.fork("bob", "moved") == refs[1]
        assert store.rewind("bob") == refs[0]
    assert windows.calls
    with DiskStateStore(tmp_path / "store") as store:
        assert store.get(refs[1]) == random_state([1])
        assert store.head("bob") == refs[0]
        assert store.check().sound
        store.export_session("bob", tmp_path / "bob.zip")
        with pytest.raises(FileExistsError):
            store.export_session("bob", tmp_path / "bob.zip")


def test_what_memory_has_no_room_for_is_committed_on_windows_too(windows, tmp_path):
    with DiskStateStore(tmp_path / "store", staged_bytes=0) as store:
        ref = store.stage(random_state([7]))
        store.stage(random_state([8]))  # the newest stays in memory
        assert store.stats().spilled_nbytes
        (folder,) = (tmp_path / "store" / "staged").iterdir()
        store.commit("bob", ref, parent=None)
        # Another process sweeps: the folder is held, however old it is; a free one goes with age.
        free = folder.with_name("0" * 16)
        free.mkdir()
        (free / "lock").touch()
        old = time.time() - 2 * staging._OLD_SECONDS
        os.utime(folder, (old, old))
        sweeper = staging.StagedFiles(tmp_path / "store")
        assert (sweeper.sweep(), free.exists()) == (0, True)
        os.utime(free, (old, old))
        assert (sweeper.sweep(), free.exists(), folder.exists()) == (1, False, True)
        assert store.get(ref) == random_state([7])
    assert not folder.exists()


def test_a_store_waits_for_the_lock_on_windows(windows, tmp_path):
    DiskStateStore(tmp_path / "store").close()
    with (tmp_path / "store" / "lock").open("r+b") as held:
        assert _files.take_lock(held.fileno())
        with (
            pytest.raises(StoreError, match="another process held lock"),
            disk_backend._only_one(tmp_path / "store" / "lock", 0.05),
        ):
            pass


def test_a_system_without_locks_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(_files, "_fcntl", None)
    monkeypatch.setattr(_files, "_msvcrt", None)
    with pytest.raises(StoreError, match=r"has no locks of files.*MemoryStateStore"):
        DiskStateStore(tmp_path / "store")


def test_a_file_system_without_locks_is_told_of(monkeypatch, tmp_path):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    stand_in = SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4, LOCK_UN=8)
    monkeypatch.setattr(_files, "_fcntl", stand_in)
    with pytest.raises(StoreError, match="No locks available"):
        DiskStateStore(tmp_path / "store")


@pytest.mark.parametrize("links", ["absent", "refused"])
def test_a_new_file_needs_no_links(links, monkeypatch, tmp_path):
    if links == "absent":
        monkeypatch.delattr(os, "link")
    else:

        def link(*_):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    _files.write_whole(tmp_path / "file", b"text", new=True)
    assert (tmp_path / "file").read_bytes() == b"text"
    with pytest.raises(FileExistsError):
        _files.write_whole(tmp_path / "file", b"other", new=True)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("system", "flags"),
    [("darwin", ["-undefined", "dynamic_lookup"]), ("win32", []), ("linux", [])],
)
def test_the_linker_is_told_what_the_system_needs(system, flags, monkeypatch):
    monkeypatch.delattr(os, "uname")
    monkeypatch.setattr(sys, "platform", system)
    assert build._undefined() == flags


@pytest.mark.parametrize("there", [["clang++", "c++"], ["c++"], []])
def test_the_first_compiler_that_is_there_is_taken(there, monkeypatch):
    used = []
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)

    def load(compiler, *_):
        used.append(compiler)
        raise OSError("as Microsoft's compiler would, which knows no such flags")

    monkeypatch.setattr(build, "_load", load)
    assert build._library("sampling.cpp", "sampling", ()) is None
    assert used == there[:1] * 2  # with OpenMP, and without


def test_locks_come_from_the_module_that_is_there(monkeypatch):
    msvcrt = Msvcrt()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    try:
        importlib.reload(_files)
        assert (_files._fcntl, _files._msvcrt) == (None, msvcrt)
    finally:
        monkeypatch.undo()
        importlib.reload(_files)
    assert _files._fcntl is fcntl
