"""Reads and writes the states of other tools: plain tensors, with no word on which model's.

These are what the `rwkv` package's users exchange: ``.pt`` and ``.pth`` files with a list, a tuple
or a dict of tensors, safetensors, and tuned start states (``*.time_state``). Such a file cannot be
checked: only the shapes say whether it fits, so the caller vouches for the model. Tuned start
states of RWKV-5 and 6 are stored transposed, those of RWKV-7 are not.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from langchain_rwkv_state._files import whole_file, write_whole
from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state.accumulators import LOG_ZERO
from langchain_rwkv_state.state.checks import require_states
from langchain_rwkv_state.state.container import as_bytes
from langchain_rwkv_state.state.layout import StateLayout
from langchain_rwkv_state.state.parts import SHIFTS, kind
from langchain_rwkv_state.state.state import RWKVState

_TUNED = re.compile(r"(?:.*\.)?blocks\.(\d+)\.att\.time_state")
_OTHER_NAMES = {"att_ab": "att_bb"}  # what some tools call RWKV-4's denominator


def export_tensors(state: RWKVState, path: str | os.PathLike[str]) -> None:
    """Writes a state's tensors for other tools: no header, no checksum, no origin.

    The file is written whole or not at all, and is readable by its owner alone.

    Args:
        state: The state.
        path: Ends with ``.safetensors`` for tensors by name, or with ``.pt`` or ``.pth`` for the
            list that the `rwkv` package takes as a state (PyTorch's own format, which is a pickle
            of tensors alone).

    Raises:
        ValueError: The path ends otherwise.
    """
    require_states("export_tensors", state)
    target = Path(path)
    tensors = {name: state[name].cpu() for name in state}
    if target.suffix == ".safetensors":
        write_whole(target, safetensors.torch.save(tensors))
    elif target.suffix in (".pt", ".pth"):
        with whole_file(target) as file:
            torch.save(list(tensors.values()), file)
    else:
        raise ValueError(f"{target.name!r} must end with .pt, .pth or .safetensors.")


def import_tensors(
    path: str | os.PathLike[str],
    zero: RWKVState,
    *,
    n_tokens: int = 0,
    log_scale: float | None = None,
) -> RWKVState:
    """Reads a state that another tool wrote.

    Taken are: a list or tuple in the `rwkv` package's order; a dict or safetensors with names such
    as ``blocks.0.att_kv``; a dict with one stack for each kind, ``att_kv`` ``[L, ...]``; and tuned
    start states, ``blocks.0.att.time_state`` ``[H, N, N]`` for each layer, whose token shifts are
    zero. Nothing that the file pickles besides tensors is run (``weights_only``).

    Args:
        path: The file.
        zero: The zero state of the model that the file is of, such as ``runtime.zero_state()``.
        n_tokens: How many tokens the state stands for, where that is known.
        log_scale: For RWKV-4 files without ``att_pp``: 0 where they come from a tool that has no
            log-scale at all. Where a tool has one and left it out, the state is lost.

    Returns:
        A state with a root that names its numbers.

    Raises:
        StateCorrupt: The file cannot be read, or holds something else than tensors.
        StateMismatch: Its tensors do not fit the model.
    """
    found = _read(Path(path))
    layout = zero.layout
    named = _named(found, layout)
    if layout.version == 4 and not any(kind(name) == "att_pp" for name in named):
        if log_scale is None:
            raise StateMismatch(
                "The file lacks att_pp, RWKV-4's log-scale, without which its accumulators mean "
                "nothing. Give log_scale=0 if the tool that wrote it has none."
            )
        for spec in layout.specs:
            if kind(spec.name) == "att_pp":
                empty = named[spec.name.replace("att_pp", "att_bb")].reshape(-1) == 0
                named[spec.name] = torch.where(empty, LOG_ZERO, log_scale)
    tensors = _fitted(named, layout)
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + as_bytes(tensor.contiguous()).tobytes())
    derivation = zero.derivation.rooted(f"import:{digest.hexdigest()}")
    return RWKVState(layout, tensors, replace(derivation, n_tokens=n_tokens))


def _read(path: Path) -> object:
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StateCorrupt(
            f"{path} pickles something else than tensors, which could run code; nothing of it was "
            "run. Ask for a file of tensors alone."
        ) from error
    except (
        safetensors.SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        reason = str(error).partition("\n")[0][:200]
        raise StateCorrupt(f"{path} is damaged or no file of tensors: {reason}") from error


def _named(found: object, layout: StateLayout) -> dict[str, torch.Tensor]:
    """Returns tensors by the layout's names."""
    if isinstance(found, Mapping):
        tensors = {str(name): _tensor(value, name) for name, value in found.items()}
        tuned = {n: t for n, t in tensors.items() if _TUNED.fullmatch(n)}
        return _tuned(tuned, layout) if tuned else _unstacked(tensors, layout)
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        names = [spec.name for spec in layout.specs]
        short = [name for name in names if kind(name) != "att_pp"]
        order = short if len(found) == len(short) else names
        if len(found) != len(order):
            raise StateMismatch(
                f"The file lists {len(found)} tensors; a state of this model has {len(names)}."
            )
        return {n: _tensor(t, n) for n, t in zip(order, found, strict=True)}
    raise StateCorrupt(f"The file holds a {type(found).__name__}, not a list or dict of tensors.")


def _tensor(value: object, name: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise StateCorrupt(f"The file holds a {type(value).__name__} at {name!r}, not a tensor.")
    return value.detach()


def _unstacked(tensors: Mapping[str, torch.Tensor], layout: StateLayout) -> dict[str, torch.Tensor]:
    """Takes stacks of layers apart; tensors that are named by layer stay."""
    kinds = {kind(spec.name) for spec in layout.specs}
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        last = _OTHER_NAMES.get(kind(name), kind(name))
        if "." in name:
            named[f"{name.rpartition('.')[0]}.{last}"] = tensor
        elif last in kinds and tensor.ndim and len(tensor) == layout.n_layer:
            named |= {f"blocks.{number}.{last}": row for number, row in enumerate(tensor)}
        else:
            raise StateMismatch(f"The model's states have no {name!r} of {list(tensor.shape)}.")
    return named


def _tuned(tensors: Mapping[str, torch.Tensor], layout: StateLayout) -> dict[str, torch.Tensor]:
    if layout.version == 4:
        raise StateMismatch("RWKV-4 has no matrix that a tuned start state could fill.")
    named = {s.name: torch.zeros(s.shape) for s in layout.specs if kind(s.name) in SHIFTS}
    for name, tensor in tensors.items():
        match = _TUNED.fullmatch(name)
        if match is not None and tensor.ndim >= 2:
            turned = tensor if layout.version == 7 else tensor.transpose(-1, -2)
            named[f"blocks.{int(match[1])}.att_kv"] = turned
    return named


def _fitted(named: Mapping[str, torch.Tensor], layout: StateLayout) -> dict[str, torch.Tensor]:
    """Returns tensors of the layout's shapes and dtypes; dimensions of 1 do not count."""
    spare = sorted(set(named) - {spec.name for spec in layout.specs})
    if spare:
        raise StateMismatch(f"The model's states have no tensor {spare[0]!r}.")
    fitted: dict[str, torch.Tensor] = {}
    for spec in layout.specs:
        tensor = named.get(spec.name)
        if tensor is None:
            raise StateMismatch(f"The file lacks the tensor {spec.name!r}.")
        wanted = [size for size in spec.shape if size != 1]
        if [size for size in tensor.shape if size != 1] != wanted:
            raise StateMismatch(
                f"{spec.name!r} is {list(tensor.shape)} in the file and {list(spec.shape)} in the "
                "model's states."
            )
        fitted[spec.name] = tensor.reshape(spec.shape).to(spec.dtype).contiguous()
    return fitted
