"""Builds the C++ beside it on first use, where a compiler is found, and keeps it for later.

`kernels.cpp` is the pass of a model, `sampling.cpp` the choice of tokens. Nothing is downloaded,
and without a compiler there is no error: PyTorch and NumPy take over. The easy mistake is to load
whatever lies under the right name: the folder belongs to the user alone, and the name holds two
digests, one of source, flags and the processor's features, the other of the file's own bytes, since
a library that was cut short kills the process that loads it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import platformdirs

from langchain_rwkv_state._files import write_whole
from langchain_rwkv_state.runtime.native.private_folder import private_folder

logger = logging.getLogger(__name__)

_BESIDE = Path(__file__).parent
# Of the pass: sums may be taken in any order; numbers that are not finite stay what they are.
_FAST = ("-ffast-math", "-fno-finite-math-only")
# Of the sampling: every float is what NumPy makes of it, and only errors are not noted.
_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Compiling and linking are two steps, since linking with -ffast-math would round denormal numbers
# of the whole process to zero, and linking with -fopenmp would bring a second OpenMP into it.
_COMPILE = ("-std=c++17", "-fPIC", "-w", "-c")
_SECONDS = 120
_DIGITS = 32


def enabled() -> bool:
    """Says whether the user wants more than PyTorch: ``RWKV_STATE_COMPILED=0`` says no.

    Then there is no compiled pass on a CPU, and on a card no kernel and no recorded steps; tokens
    are chosen in NumPy.
    """
    return os.environ.get("RWKV_STATE_COMPILED", "1") != "0"


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled pass, built if need be; ``None`` where that is not possible."""
    return _library("kernels.cpp", "rwkv7", _FAST)


@functools.cache
def sampling_library() -> ctypes.CDLL | None:
    """Returns the compiled sampling, built if need be; ``None`` where that is not possible."""
    return _library("sampling.cpp", "sampling", _EXACT)


def _library(source: str, name: str, arithmetic: tuple[str, ...]) -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        logger.info("There is no C++ compiler, so %s is done without.", source)
        return None
    for threads in (["-fopenmp"], []):
        flags = ["-O3", "-march=native", *arithmetic, *_COMPILE, *threads]
        try:
            return _load(compiler, flags, _BESIDE / source, name)
        except (OSError, subprocess.SubprocessError) as error:
            logger.info("%s is not to be had compiled with %s: %s", source, threads, error)
    return None


def _load(compiler: str, flags: list[str], source: Path, name: str) -> ctypes.CDLL:
    told = [source.read_bytes(), _features(compiler), " ".join(flags).encode()]
    mark = hashlib.sha256(b"\0".join(told))
    folder = _folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="rwkv-state-") as passing:
            return ctypes.CDLL(str(_build(compiler, flags, source, Path(passing), name)))
    name = f"{name}-{mark.hexdigest()[:_DIGITS]}"
    return ctypes.CDLL(str(_kept(folder, name) or _build(compiler, flags, source, folder, name)))


@functools.cache
def _features(compiler: str) -> bytes:
    """Returns what a compiler says of itself and of this processor; it is asked once a process."""
    return _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])


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


def _build(compiler: str, flags: list[str], source: Path, folder: Path, name: str) -> Path:
    """Compiles in a place of its own, and gives the result its name once it is on the disk."""
    with tempfile.TemporaryDirectory(prefix="rwkv-state-") as passing:
        compiled, linked = Path(passing) / "pass.o", Path(passing) / "pass.so"
        _run([compiler, *flags, str(source), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(linked), *_undefined()])
        content = linked.read_bytes()
    target = folder / _named(name, content)
    write_whole(target, content)
    return target


def _undefined() -> list[str]:
    """Returns what lets a linker leave OpenMP's functions to those that PyTorch loaded."""
    return ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []


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
            f"What is compiled for RWKV-7 cannot be kept in {path} ({error}), so every process "
            "builds it anew, which takes seconds. Take that right from others (chmod go-w), or "
            "set XDG_CACHE_HOME to a directory of your own.",
            stacklevel=2,
        )
        return None
