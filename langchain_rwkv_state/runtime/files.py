"""Checkpoint files: from a path to named tensors, running nothing that the file brings.

This module knows the two formats, ``.pth`` and ``.safetensors``, and no model. A file's content
decides which it is, not its name. The easy mistake is to keep a tensor that it returns: they are
views of the mapped file, so that whoever changes the file changes them (`private_copy`).
"""

from __future__ import annotations

import difflib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch

from langchain_rwkv_state.errors import ModelLoadError

SUFFIXES = (".pth", ".safetensors")
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # PyTorch before 1.6
_NAMED = 8  # files that a message lists
_FOREIGN_OBJECT = re.compile(r"unsupported (global|class)", re.IGNORECASE)  # in PyTorch's words
_EXPECTED = "an RWKV checkpoint is a .pth or .safetensors file with BlinkDL's tensor names"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Maps a checkpoint into memory.

    Args:
        path: A file that `torch.save` or safetensors wrote.

    Returns:
        Tensors by name: views of the mapped file on the CPU, to be read and not kept.

    Raises:
        ModelLoadError: The file is missing, damaged, of another format, or holds anything but
            tensors. A pickled payload is not run.
    """
    require_file(path)
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
        return _only_tensors(_read_safetensors(path), path)
    if head[:2] == b"PK" or head[: len(_LEGACY)] == _LEGACY:
        return _only_tensors(_read_pth(path), path)
    raise ModelLoadError(f"{path} is no checkpoint: {_EXPECTED}. Is the download whole?")


def private_copy(tensors: dict[str, torch.Tensor], *, kept: frozenset[torch.dtype]) -> None:
    """Replaces views of a mapped file by copies, where a model would otherwise keep them.

    Args:
        tensors: What `read_tensors` gave; changed in place.
        kept: The dtypes in which the model keeps tensors. Others are converted, and so copied,
            by whoever takes them.
    """
    for name, tensor in tensors.items():
        if tensor.dtype in kept:
            tensors[name] = tensor.clone()


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


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(
            f"{path} is not a whole safetensors file ({error}): download it again."
        ) from error


def _read_pth(path: Path) -> object:
    try:
        # Files of before PyTorch 1.6 are no archives and cannot be mapped.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
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
