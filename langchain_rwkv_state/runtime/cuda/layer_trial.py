"""Tries the kernels of a layer on a device before they are used, against fp32 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import Kernels, PlainKernels
from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from langchain_rwkv_state.runtime.native.weights import Lora, Norm

SIZES = (1, 2, 16, 128, 512, 600)
"""Rows of a trial: one for each tile that is compiled."""

ROUNDINGS = 6
"""By so many roundings of the compute dtype a result may be off, as a share of the largest."""

_WIDTH, _INNER, _RANKS = 128, 512, (32, 48, 64, 32)


def works(device: torch.device, dtype: torch.dtype, sizes: Sequence[int] = SIZES) -> str | None:
    """Compiles the kernels of a small layer, and compares them with fp32 on the CPU.

    Args:
        device: Where to run them.
        dtype: In which is computed.
        sizes: Numbers of rows, each read as one token of each conversation and as one prompt.

    Returns:
        ``None`` if they are right, else why not.
    """
    tolerance = max(ROUNDINGS * torch.finfo(dtype).eps, 1e-5)
    for rows in sizes:
        try:
            errors = _errors(rows, device, dtype)
        except Exception as cause:  # noqa: BLE001  # whatever Triton, its compiler or the card raise
            return f"a layer of {rows} tokens does not run: {cause}"
        for name, error in errors.items():
            if not error <= tolerance:  # nor is NaN
                return f"{name} of {rows} tokens is off by {error:.1g} of the largest number"
    return None


def _errors(rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Returns by how much each kernel is off, as a share of its largest number."""
    cpu = torch.device("cpu")
    ours = _read(TritonKernels(), rows, device, lambda x: x.to(device, dtype))
    right = _read(PlainKernels(), rows, cpu, lambda x: x.to(dtype).float())
    errors = {}
    for name, parts in right.items():
        pairs = zip(ours[name], parts, strict=True)
        shares = [
            (one.cpu().float() - other).abs().max() / other.abs().max() for one, other in pairs
        ]
        errors[name] = torch.stack(shares).max().item()  # NaN if one is
    return errors


def _read(
    kernels: Kernels, rows: int, device: torch.device, moved: Callable[[Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Returns what each kernel makes of the same numbers."""
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return moved(torch.randn(shape, generator=generator))

    def matrix(out: int, width: int) -> Tensor:
        return moved(torch.randn(out, width, generator=generator) / math.sqrt(width))

    def indices(count: int, least: int = 0) -> Tensor:
        found = torch.arange(count, dtype=torch.int32) + least
        return found.to(device)

    x, add, emb = random(rows, _WIDTH), random(rows, _WIDTH), random(rows, _WIDTH)
    norm, lerp = Norm(random(_WIDTH), random(_WIDTH)), random(6, _WIDTH)
    mixed, inner = random(6, rows, _WIDTH), random(rows, _INNER)
    each = Spans.of_each(indices(rows), indices(rows, rows))
    marks = ((rows // 2, 2),) if rows > 1 else ()
    spans = {"each": each, "prompt": Spans.of([Segment(rows, 0, 1, marks)], device)}
    found = {}
    for name, at in spans.items():
        cells = random(2 * rows + 1, _WIDTH)
        found[f"mix ({name})"] = [*kernels.mix(x, add, norm, lerp, cells, at), cells]
        found[f"end ({name})"] = [kernels.end(x, add, norm, at)]
    given = indices(rows, -(rows // 2) - 1)
    found["embed"] = [
        kernels.embed(emb, given, indices(rows), indices(rows + 1).clamp(max=rows - 1))
    ]
    products = kernels.products(*(matrix(_WIDTH, _WIDTH) for _ in range(3)))
    found["products"] = [products(mixed[:3])]
    decay, rate, gate, value = (
        Lora(matrix(rank, _WIDTH), matrix(_WIDTH, rank), random(_WIDTH)) for rank in _RANKS
    )
    for name, value_mix in (("low_rank", value), ("low_rank (first layer)", None)):
        gates = kernels.low_rank(decay, rate, value_mix, Lora(gate.down, gate.up, None))(mixed)
        found[name] = [part for part in gates if part is not None]
    channel = kernels.channel(matrix(_INNER, _WIDTH), matrix(_WIDTH, _INNER))
    found["channel"] = [channel(mixed[0])]
    found["relu_squared"] = [kernels.relu_squared(inner)]
    return found
