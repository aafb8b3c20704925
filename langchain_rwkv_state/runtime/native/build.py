"""Builds `kernels.cpp` on first use, where a compiler is found, and keeps the result for later.

Nothing is downloaded, and without a compiler there is no error: the plain pass takes over. The
easy mistake is to load whatever lies under the right name: the folder belongs to the user alone,
and the name is a digest of source, flags and the processor's features.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import platformdirs

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
# Sums may be taken in any order; numbers that are not finite stay what they are. Compiling and
# linking are two steps, since linking with -ffast-math would round denormal numbers of the whole
# process to zero, and linking with -fopenmp would bring a second OpenMP into it.
_COMPILE = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17"]
_COMPILE += ["-fPIC", "-w", "-c"]
_SECONDS = 120


def enabled() -> bool:
    """Says whether the user wants more than PyTorch: ``RWKV_STATE_COMPILED=0`` says no.

    Then there is no compiled pass on a CPU, and on a card no kernel and no recorded steps.
    """
    return os.environ.get("RWKV_STATE_COMPILED", "1") != "0"


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled pass, built if need be; ``None`` where that is not possible."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        logger.info("There is no C++ compiler, so RWKV-7 runs on PyTorch alone.")
        return None
    for threads in (["-fopenmp"], []):
        try:
            return _load(compiler, [*_COMPILE, *threads])
        except (OSError, subprocess.SubprocessError) as error:
            logger.info("The compiled pass is not to be had with %s: %s", threads, error)
    return None


def _load(compiler: str, flags: list[str]) -> ctypes.CDLL:
    features = _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    mark = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), features, " ".join(flags).encode()]))
    folder = _folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="rwkv-state-") as passing:
            return ctypes.CDLL(str(_build(compiler, flags, Path(passing) / "pass.so")))
    built = folder / f"rwkv7-{mark.hexdigest()[:32]}.so"
    if not built.is_file():
        _build(compiler, flags, built)
    return ctypes.CDLL(str(built))


def _build(compiler: str, flags: list[str], target: Path) -> Path:
    """Compiles to a file beside the target and moves it there in one step."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        compiled, linked = Path(folder) / "pass.o", Path(folder) / "pass.so"
        _run([compiler, *flags, str(SOURCE), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(linked), *_undefined()])
        linked.replace(target)
    return target


def _undefined() -> list[str]:
    """Returns what lets a linker leave OpenMP's functions to those that PyTorch loaded."""
    return ["-undefined", "dynamic_lookup"] if os.uname().sysname == "Darwin" else []


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS)  # noqa: S603
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise OSError(f"{' '.join(command)} failed: {text[-2000:]}")
    return done.stdout


def _folder() -> Path | None:
    """Returns a folder that nobody but the user can write to, ``None`` where there is none."""
    folder = Path(platformdirs.user_cache_dir("langchain-rwkv-state")) / "compiled"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(status.st_mode) and private and status.st_uid == os.getuid():
            return folder
    return None
