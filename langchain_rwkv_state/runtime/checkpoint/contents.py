"""Reads the tensors at a path under BlinkDL's names, and runs nothing that a file brings.

Here the parts meet: which files, which container, whose names; it knows no versions of RWKV. The
easy mistake is to map a file whose every number is needed: somebody may write a new one in its
place meanwhile, and a process that reaches behind the end of a mapped file dies (SIGBUS), with no
error. So whatever is loaded is read.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.fla_names import from_fla, is_fla, read_config
from langchain_rwkv_state.runtime.checkpoint.gguf_file import GGUF, read_gguf
from langchain_rwkv_state.runtime.checkpoint.gguf_names import from_gguf
from langchain_rwkv_state.runtime.checkpoint.kind import EXPECTED, Kind, kind_of
from langchain_rwkv_state.runtime.checkpoint.names import Tensors, require_model, without_prefixes
from langchain_rwkv_state.runtime.checkpoint.own_memory import counting
from langchain_rwkv_state.runtime.checkpoint.pth_file import read_pth
from langchain_rwkv_state.runtime.checkpoint.safetensors_file import read_safetensors
from langchain_rwkv_state.runtime.checkpoint.where import find

Progress = Callable[[int, int], None]

# What PyTorch raises on a pickle whose objects are of other types than it thinks.
_DAMAGE = (
    *(RuntimeError, EOFError, OSError, ValueError, TypeError),
    *(AttributeError, LookupError, ArithmeticError, AssertionError, MemoryError),
)
_FOREIGN_OBJECT = re.compile(r"unsupported (global|class)", re.IGNORECASE)  # in PyTorch's words


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
        tensors: By BlinkDL's names, on the CPU.
        form: What its files are, in words.
        files: Those that were read.
    """

    tensors: dict[str, torch.Tensor]
    form: str
    files: tuple[Path, ...]


def read_tensors(
    path: Path, *, mapped: bool = False, on_progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """Reads a checkpoint of any form into memory.

    Args:
        path: A file or a folder, as `find` takes it.
        mapped: Whether to map the files instead, for a quick look at a few numbers. Such tensors
            are not to be kept: whoever changes a file changes them, and whoever cuts it short
            ends the process.
        on_progress: Called with (bytes read, bytes in all) as the files are read; what is mapped
            is not counted.

    Returns:
        Tensors by BlinkDL's names, on the CPU, in the dtypes of the file; fp64 becomes fp32, and
        quantised blocks of a GGUF fp16.

    Raises:
        ModelLoadError: There is nothing there, it is damaged, of another format, was changed while
            it was read, or holds anything but tensors. A pickled payload is not run.

    Example:
        >>> tensors = read_tensors(Path("rwkv7-g1.pth"))  # doctest: +SKIP
        >>> tensors["emb.weight"].shape  # doctest: +SKIP
        torch.Size([65536, 768])
    """
    return read_contents(path, mapped=mapped, on_progress=on_progress).tensors


def read_contents(
    path: Path, *, mapped: bool = False, on_progress: Progress | None = None
) -> Contents:
    """Reads a checkpoint and says what form it has; otherwise as `read_tensors`."""
    found = find(path)
    with _unchanged(found.files), _reporting(found.files, on_progress):
        parts = [_read(file, mapped=mapped) for file in found.files]
        tensors = _joined(parts, found.files)
    containers = sorted({part.container for part in parts})
    words = [" and ".join(containers)]
    if len(parts) > 1:
        words[0] += f", {len(parts)} shards"
    inside = next((part.inside for part in parts if part.inside), "")
    if inside:
        words.append(f"inside {inside!r}")
    if any(part.gguf for part in parts):
        metadata: dict[str, object] = {}
        for part in reversed(parts):
            metadata |= part.gguf.metadata if part.gguf else {}
        kinds = sorted({kind for part in parts if part.gguf for kind in part.gguf.quantised})
        tensors = from_gguf(tensors, metadata, path)
        words.append(f"llama.cpp's names of {metadata['general.architecture']}")
        words += [f"{', '.join(kinds)} dequantised to fp16"] if kinds else []
    else:
        tensors, prefix = without_prefixes(tensors, path)
        words += [f"prefix {prefix!r} taken off"] if prefix else []
        require_model(tensors, path)
        if is_fla(tensors):
            tensors = from_fla(tensors, read_config(found.config), path)
            words.append("a Hugging Face model in fla's names")
        else:
            _require_no_other(tensors, found.config, path)
            words.append("BlinkDL's names")
    return Contents(_at_most_fp32(tensors), ", ".join(words), found.files)


@dataclass(frozen=True)
class _Part:
    """One file's tensors, and what stands around them."""

    tensors: Tensors
    container: str
    inside: str = ""
    gguf: GGUF | None = None


def _read(path: Path, *, mapped: bool) -> _Part:
    kind: Kind = kind_of(path)
    if kind == "gguf":
        gguf = _read_gguf(path, mapped=mapped)
        return _Part(gguf.tensors, "GGUF", gguf=gguf)
    if kind == "safetensors":
        return _Part(_only_tensors(_read_safetensors(path, mapped=mapped), path), "safetensors")
    found, inside = _read_pth(path, mapped=mapped)
    return _Part(_only_tensors(found, path), "pth", inside)


def _joined(parts: Sequence[_Part], files: Sequence[Path]) -> Tensors:
    """Returns the tensors of all shards, and lets go of theirs."""
    joined: Tensors = {}
    for part, file in zip(parts, files, strict=True):
        twice = next(iter(part.tensors.keys() & joined.keys()), None)
        if twice is not None:
            raise ModelLoadError(
                f"{file} holds {twice!r}, as another shard beside it does: they are not shards of "
                "one checkpoint. Name one file, or download them again."
            )
        joined |= part.tensors
        part.tensors.clear()
    return joined


def _require_no_other(tensors: Tensors, config: Path, path: Path) -> None:
    """Refuses a Hugging Face model of another kind by the name that it has."""
    if "emb.weight" in tensors or any(name.startswith("blocks.") for name in tensors):
        return
    kind = read_config(config).get("model_type")
    if kind is not None:
        raise ModelLoadError(
            f"{path} is a Hugging Face model of the type {kind!r} (it holds "
            f"{next(iter(tensors))!r}): of these RWKV-7 in fla's names is read. Use such a one, or "
            "a checkpoint in BlinkDL's format."
        )


def _at_most_fp32(tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float64:
            tensors[name] = tensor.float()
    return tensors


@contextmanager
def _unchanged(files: Sequence[Path]) -> Iterator[None]:
    """Refuses what was read from files that were written to meanwhile."""
    before = [_version(file) for file in files]
    raised: ModelLoadError | None = None
    try:
        yield
    except ModelLoadError as error:
        raised = error
    for file, version in zip(files, before, strict=True):
        if _version(file) != version:
            raise _changed(file) from raised
    if raised is not None:
        raise raised


@contextmanager
def _reporting(files: Sequence[Path], on_progress: Progress | None) -> Iterator[None]:
    """Calls `on_progress` with the bytes that were read of the files, and with all of theirs."""
    if on_progress is None:
        yield
        return
    tell, done, total = on_progress, 0, sum(file.stat().st_size for file in files)

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        tell(min(done, total), total)

    with counting(on_bytes):
        yield


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


def _read_gguf(path: Path, *, mapped: bool) -> GGUF:
    try:
        return read_gguf(path, mapped=mapped)
    except (OSError, ValueError, NotImplementedError) as error:
        raise ModelLoadError(
            f"{path} is not a whole GGUF file ({error}): download it again."
        ) from error


def _read_pth(path: Path, *, mapped: bool) -> tuple[object, str]:
    try:
        return read_pth(path, mapped=mapped)
    except pickle.UnpicklingError as error:
        if not _FOREIGN_OBJECT.search(str(error)):
            raise _damaged(path, error) from error
        raise ModelLoadError(
            f"{path} holds pickled objects besides tensors, which could run code when they are "
            "read, so it was refused and nothing of it was run: get the weights as .safetensors, "
            "or as a .pth of tensors alone."
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelLoadError:
    reason = str(error).partition("\n")[0].partition(". ")[0][:200]
    return ModelLoadError(
        f"{path} is truncated or damaged ({reason}): download it again, or write it "
        f"again; {EXPECTED}."
    )


def _only_tensors(found: object, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(found, list | tuple) and found and isinstance(found[0], torch.Tensor):
        raise ModelLoadError(
            f"{path} holds a list of tensors, which is how the rwkv package keeps a state, no "
            "model: read it with import_tensors and pass the model that it belongs to."
        )
    if not isinstance(found, Mapping) or not found:
        raise ModelLoadError(f"{path} holds no named tensors: {EXPECTED}.")
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
                f"{EXPECTED}."
            )
        tensors[name] = tensor.detach()
    return tensors
