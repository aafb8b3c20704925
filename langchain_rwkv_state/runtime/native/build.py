"""Builds `kernels.cpp` on first use, where a compiler is found, and keeps the result for later.

Nothing is downloaded, and without a compiler there is no error: the plain pass takes over. The
easy mistake is to load whatever lies under the right name: the folder belongs to the user alone,
and the name holds two digests, one of source, flags and the processor's features, the other of the
file's own bytes, since a library that was cut short kills the process that loads it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import platformdirs

from langchain_rwkv_state.runtime.native.private import private_folder
from langchain_rwkv_state.whole import write_whole

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
# Sums may be taken in any order; numbers that are not finite stay what they are. Compiling and
# linking are two steps, since linking with -ffast-math would round denormal numbers of the whole
# process to zero, and linking with -fopenmp would bring a second OpenMP into it.
_COMPILE = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17"]
_COMPILE += ["-fPIC", "-w", "-c"]
_SECONDS = 120
_DIGITS = 32


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
            return ctypes.CDLL(str(_build(compiler, flags, Path(passing), "rwkv7")))
    name = f"rwkv7-{mark.hexdigest()[:_DIGITS]}"
    return ctypes.CDLL(str(_kept(folder, name) or _build(compiler, flags, folder, name)))


def _kept(folder: Path, name: str) -> Path | None:
    """Returns a library that was built before and is as it was; what is not is removed."""
    for built in sorted(folder.glob(f"{name}*.so")):
        if built.is_symlink() or not built.is_file():
            continue
        if built.name == _named(name, built.read_bytes()):
            return built
        logger.info("%s is not what was built: it is built again.", built)
        built.unlink(missing_ok=True)
    return None


def _named(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:_DIGITS]}.so"


def _build(compiler: str, flags: list[str], folder: Path, name: str) -> Path:
    """Compiles in a place of its own, and gives the result its name once it is on the disk."""
    with tempfile.TemporaryDirectory(prefix="rwkv-state-") as passing:
        compiled, linked = Path(passing) / "pass.o", Path(passing) / "pass.so"
        _run([compiler, *flags, str(SOURCE), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(linked), *_undefined()])
        content = linked.read_bytes()
    target = folder / _named(name, content)
    write_whole(target, content)
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
    """Returns a folder that nobody but the user can write to; ``None``, and a warning, for none."""
    path = Path(platformdirs.user_cache_dir("langchain-rwkv-state")) / "compiled"
    try:
        return private_folder(path.absolute())
    except OSError as error:
        warnings.warn(
            f"The compiled pass of RWKV-7 cannot be kept in {path} ({error}), so every process "
            "builds it anew, which takes seconds. Take that right from others (chmod go-w), or "
            "set XDG_CACHE_HOME to a directory of your own.",
            stacklevel=2,
        )
        return None
