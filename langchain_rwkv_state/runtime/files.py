"""Checkpoint files: from a path to named tensors, running nothing that the file brings.

This module knows the two formats, ``.pth`` and ``.safetensors``, and no model. A file's content
decides which it is, not its name. The easy mistake is to map a file whose every number is needed:
somebody may write a new one in its place meanwhile, and a process that reaches behind the end of a
mapped file dies (SIGBUS), with no error. So whatever is loaded is read.
"""

from __future__ import annotations

import difflib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.pth_file import read_pth
from langchain_rwkv_state.runtime.safetensors_file import read_safetensors

SUFFIXES = (".pth", ".safetensors")
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # PyTorch before 1.6
_NAMED = 8  # files that a message lists
_FOREIGN_OBJECT = re.compile(r"unsupported (global|class)", re.IGNORECASE)  # in PyTorch's words
_EXPECTED = "an RWKV checkpoint is a .pth or .safetensors file with BlinkDL's tensor names"


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Reads a checkpoint into memory.

    Args:
        path: A file that `torch.save` or safetensors wrote.
        mapped: Whether to map the file instead, for a quick look at a few numbers. Such tensors
            are not to be kept: whoever changes the file changes them, and whoever cuts it short
            ends the process.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ModelLoadError: The file is missing, damaged, of another format, was changed while it was
            read, or holds anything but tensors. A pickled payload is not run.
    """
    require_file(path)
    with _unchanged(path):
        return _read(path, mapped=mapped)


def _read(path: Path, *, mapped: bool) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    if head[:4] == b"GGUF":
        raise ModelLoadError(f"{path} is a GGUF file, which this package cannot read: {_EXPECTED}.")
    if not head:
        raise ModelLoadError(f"{path} is empty: download it again.")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _only_tensors(_read_safetensors(path, mapped=mapped), path)
    if head[:2] == b"PK" or head[: len(_LEGACY)] == _LEGACY:
        return _only_tensors(_read_pth(path, mapped=mapped), path)
    raise ModelLoadError(f"{path} is no checkpoint: {_EXPECTED}. Is the download whole?")


def require_file(path: Path) -> None:
    """Checks that a path is a file.

    Raises:
        ModelLoadError: It is not; the message names near matches.
    """
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        inside = ", ".join(names[:_NAMED] + ["..."] * (len(names) > _NAMED))
        raise ModelLoadError(
            f"{path} is a directory: name one file, such as {inside}."
            if inside
            else f"{path} is a directory that holds no .pth or .safetensors file."
        )
    if path.is_file():
        return
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the path."
    raise ModelLoadError(f"There is no file {path}: {hint}")


@contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    """Refuses what was read from a file that was written to meanwhile."""
    before = _version(path)
    try:
        yield
    except ModelLoadError as error:
        if _version(path) != before:
            raise _changed(path) from error
        raise
    if _version(path) != before:
        raise _changed(path)


def _version(path: Path) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116  # the file that a link leads to, as when it is read
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _changed(path: Path) -> ModelLoadError:
    return ModelLoadError(
        f"{path} was changed or cut short while it was being read: load it again once whoever "
        "writes it is done, and write new ones under another name first."
    )


def _read_safetensors(path: Path, *, mapped: bool) -> dict[str, torch.Tensor]:
    try:
        if not mapped:
            return read_safetensors(path)
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(
            f"{path} is not a whole safetensors file ({error}): download it again."
        ) from error


def _read_pth(path: Path, *, mapped: bool) -> object:
    try:
        if mapped and zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return read_pth(path)
    except pickle.UnpicklingError as error:
        if not _FOREIGN_OBJECT.search(str(error)):
            raise _damaged(path, error) from error
        raise ModelLoadError(
            f"{path} holds pickled objects besides tensors, which could run code when they are "
            "read, so it was refused and nothing of it was run: get the weights as .safetensors, "
            "or as a .pth of tensors alone."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelLoadError:
    reason = str(error).partition("\n")[0].partition(". ")[0][:200]
    return ModelLoadError(
        f"{path} is truncated or damaged ({reason}): download it again, or write it "
        f"again; {_EXPECTED}."
    )


def _only_tensors(found: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(found, Mapping) or not found:
        raise ModelLoadError(f"{path} holds no named tensors: {_EXPECTED}.")
    if "_strategy" in found:
        raise ModelLoadError(
            f"{path} was converted by the rwkv package for the strategy {found['_strategy']!r}: "
            "use the checkpoint that it was made from."
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            inner = " (the model may be inside it)" if isinstance(tensor, Mapping) else ""
            raise ModelLoadError(
                f"{path} holds {type(tensor).__name__} {name!r}{inner} where a tensor should be: "
                f"{_EXPECTED}."
            )
        tensors[name] = tensor.detach()
    return tensors
