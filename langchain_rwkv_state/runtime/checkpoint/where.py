"""Finds the files that a model's path leads to: one, or all shards of a folder.

It reads no tensors; only an index of shards is looked into. A folder is taken whole, or not at all:
a missing shard may make a model look like an older version.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.kind import looks_like_weights

SUFFIXES = (".pth", ".safetensors", ".st", ".gguf")
"""How checkpoints are called; a file by any other name is read as well."""

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\..+)?")
INDEX_SUFFIX = ".index.json"
STANDARD = ("model.safetensors", "pytorch_model.bin")
"""How Hugging Face folders call a model in one file, in the order in which they are looked for."""

_NAMED = 8  # files that a message lists


@dataclass(frozen=True)
class Found:
    """Where a model is.

    Attributes:
        path: What was named.
        files: The files to be read, at least one.
    """

    path: Path
    files: tuple[Path, ...]

    @property
    def config(self) -> Path:
        """Where a Hugging Face model has its settings; perhaps there is no such file."""
        return self.files[0].with_name("config.json")


_OTHER_NAMES = (
    "check the path. A model is 'demo', a checkpoint's file or folder, or org/repo/file on a hub."
)


def find(path: Path) -> Found:
    """Finds the files of a model.

    In a folder the shards that an index names, else those that their names number, else the
    ``model.safetensors`` beside a ``config.json``, else its only checkpoint.

    Args:
        path: A file or a folder.

    Raises:
        ModelLoadError: There is nothing there (the message names near matches), or a folder holds
            no checkpoint, several, or not all shards of one.

    Example:
        >>> find(Path("models/rwkv7-0.1B-g1")).files  # doctest: +SKIP
        (PosixPath('models/rwkv7-0.1B-g1/model.safetensors'),)
    """
    if path.is_dir():
        return Found(path, tuple(_in_folder(path)))
    if path.is_file():
        return Found(path, (path,))
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else _OTHER_NAMES
    raise ModelLoadError(f"There is no file {path}: {hint}")


def shard_hint(path: Path) -> str:
    """Returns what to do about a file that lacks tensors: a sentence, or nothing."""
    match = SHARD.fullmatch(path.name)
    if match and int(match["total"]) > 1:
        return (
            f" By its name it is shard {int(match['number'])} of {int(match['total'])}: "
            f"pass the folder {path.parent}, which is taken whole."
        )
    if path.is_file() and any(path.parent.glob(f"*{INDEX_SUFFIX}")):
        return f" There are shards beside it: pass the folder {path.parent}, taken whole."
    return " If it is one shard of several, pass their folder."


def _in_folder(folder: Path) -> list[Path]:
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if indices:
        return _indexed(indices[-1])  # that of .safetensors comes behind that of .bin
    names = {p.name: p for p in sorted(folder.iterdir()) if _is_candidate(p)}
    shards = [match for match in map(SHARD.fullmatch, names) if match]
    if shards and len(shards) == len(names):
        return [names[name] for name in _all_shards(folder, shards)]
    if (folder / "config.json").is_file():
        for name in STANDARD:
            if name in names:
                return [names[name]]
    if not names:
        raise ModelLoadError(
            f"{folder} is a folder that holds no .pth, .safetensors or .gguf file: name one that "
            "does, or download its files again."
        )
    if len({path.with_suffix("") for path in names.values()}) > 1:
        inside = ", ".join([*list(names)[:_NAMED], *["..."] * (len(names) > _NAMED)])
        raise ModelLoadError(
            f"{folder} is a folder of several checkpoints: name one file, such as {inside}."
        )
    return [list(names.values())[-1]]  # .safetensors comes behind .pth, and is the same model


def _is_candidate(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    return path.suffix in SUFFIXES or looks_like_weights(path)


def _indexed(index: Path) -> list[Path]:
    """Returns the files that an index names."""
    try:
        found = json.loads(index.read_bytes())
        names = sorted({str(name) for name in found["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            f"{index} is no index of shards ({type(error).__name__}): download it again."
        ) from error
    foreign = [name for name in names if Path(name).name != name]
    if foreign or not names:
        raise ModelLoadError(
            f"{index} names {foreign[0] if foreign else 'nothing'!r} where the files of its own "
            "folder should be: download it again."
        )
    lacking = [name for name in names if not (index.parent / name).is_file()]
    if lacking:
        raise ModelLoadError(
            f"{index.parent} lacks {', '.join(lacking[:_NAMED])}: {len(lacking)} of the "
            f"{len(names)} shards that {index.name} names. Download them."
        )
    named = {(m["stem"], m["total"], m["suffix"]) for m in map(SHARD.fullmatch, names) if m}
    beside = [m for m in (SHARD.fullmatch(p.name) for p in sorted(index.parent.iterdir())) if m]
    unnamed = [
        match[0]
        for match in beside
        if match[0] not in names and (match["stem"], match["total"], match["suffix"]) in named
    ]
    if unnamed:
        raise ModelLoadError(
            f"{index} does not name {', '.join(unnamed[:_NAMED])}, a shard that lies beside those "
            "that it names: download the index again."
        )
    return [index.parent / name for name in names]


def _all_shards(folder: Path, shards: Sequence[re.Match[str]]) -> list[str]:
    """Returns the names of numbered shards, where they are all there and of one model."""
    models = {(match["stem"], match["total"], match["suffix"]) for match in shards}
    if len(models) > 1:
        raise ModelLoadError(
            f"{folder} holds the shards of several checkpoints, such as {shards[0][0]} and "
            f"{shards[-1][0]}: put those of one into a folder of their own."
        )
    total = int(shards[0]["total"])
    there = {int(match["number"]) for match in shards}
    lacking = sorted(set(range(1, total + 1)) - there)
    if lacking:
        raise ModelLoadError(
            f"{folder} lacks shard {lacking[0]} of {total} (there is {shards[0][0]}): download "
            "the others too."
        )
    return [match[0] for match in shards]
