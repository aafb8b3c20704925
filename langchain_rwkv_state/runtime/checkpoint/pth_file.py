"""Reads a ``.pth`` archive storage by storage, each into memory of its own.

PyTorch reads one all at once through malloc, which keeps tens of megabytes of what is freed, or
maps it. Here PyTorch maps the file and reads the pickle, so that nothing of it is run; the numbers
are then read from their places in the archive, and the mapping, which somebody may cut short, is
never looked into. Names, sizes and distances must all agree: where they do not, PyTorch reads the
file its own way.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from langchain_rwkv_state.runtime.checkpoint.names import unwrapped
from langchain_rwkv_state.runtime.checkpoint.own_memory import own_memory, read_into

_RECORD = re.compile(r"[^/]+/data/\d+")
_LOCAL_HEADER_BYTES = 30
_NAME_LENGTH_AT = 26


def read_pth(path: Path, *, mapped: bool) -> tuple[object, str]:
    """Reads what `torch.save` wrote.

    Args:
        path: The file.
        mapped: Whether to map an archive, for a quick look.

    Returns:
        Tensors in a mapping, or what else it is; and the name that they stand under among other
        things, which are not read.

    Raises:
        ValueError: It ends too early.
        Exception: As `torch.load` with ``weights_only``.
    """
    if not zipfile.is_zipfile(path):  # files of before PyTorch 1.6 are no archives
        return unwrapped(_loaded(path))
    if path.suffix == ".safetensors":  # for which PyTorch would take it, and a name is all it maps
        return unwrapped(_loaded(path))
    found, name = unwrapped(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    if mapped or not isinstance(found, Mapping):
        return found, name
    tensors = [each for each in found.values() if isinstance(each, torch.Tensor)]
    storages = {each.data_ptr(): each for each in (t.untyped_storage() for t in tensors)}
    with path.open("rb", buffering=0) as file:
        places = _places(file, {at: each.nbytes() for at, each in storages.items()})
        if places is None:
            return unwrapped(_loaded(path))
        read = {at: _storage(file, place, storages[at]) for at, place in places.items()}
        return {key: _moved(each, read) for key, each in found.items()}, name


def _loaded(path: Path) -> object:
    """Returns what PyTorch reads all at once, from an open file, whose name it does not judge."""
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _places(file: BinaryIO, mapped: Mapping[int, int]) -> dict[int, int] | None:
    """Returns where in the file each mapped storage lies.

    Args:
        file: The archive.
        mapped: Sizes of storages in bytes, by their address in memory.

    Returns:
        Offsets in the file by address; ``None`` where not exactly one distance fits all.
    """
    records = _records(file)
    first = min(mapped, default=0)
    fitting = [
        first - at
        for at in records
        if all(records.get(address - (first - at)) == size for address, size in mapped.items())
    ]
    if len(fitting) != 1:
        return None
    return {address: address - fitting[0] for address in mapped}


def _records(file: BinaryIO) -> dict[int, int]:
    """Returns the sizes of an archive's storages, by their offset in the file."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not _RECORD.fullmatch(info.filename) or info.compress_type != zipfile.ZIP_STORED:
                continue
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
            lengths = header[_NAME_LENGTH_AT:]
            start = info.header_offset + _LOCAL_HEADER_BYTES
            start += int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            found[start] = info.file_size
    return found


def _storage(file: BinaryIO, place: int, mapped: torch.UntypedStorage) -> torch.UntypedStorage:
    memory = own_memory(mapped.nbytes())
    file.seek(place)
    read_into(file, memory)
    return memory.untyped_storage()


def _moved(value: object, read: Mapping[int, torch.UntypedStorage]) -> object:
    """Returns the same view of the storage that was read, or what is no tensor as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    storage = read[value.untyped_storage().data_ptr()]
    empty = torch.empty(0, dtype=value.dtype)
    return empty.set_(storage, value.storage_offset(), value.size(), value.stride())
