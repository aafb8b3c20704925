"""Random cases for the kernels of a layer, to be run by whichever kernels are in question.

A case is made of plain tensors, so that it can be carried to a process whose Triton interprets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import Kernels
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from langchain_rwkv_state.runtime.native.weights import Lora, Norm

CPU = torch.device("cpu")

Results: TypeAlias = dict[str, Tensor]
"""What a kernel returned and what it wrote, by name."""


@dataclass
class Case:
    """One call of a kernel.

    Attributes:
        kernel: Its name.
        given: Its arguments, and those of what it returns where that is a function.
        note: What makes the case one of its own.
    """

    kernel: str
    given: dict[str, Any]
    note: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        dtype: torch.dtype = self.given["x"].dtype
        return dtype

    def run(self, kernels: Kernels) -> Results:
        """Runs it on copies of its tensors, which stay as they are but for those that may not."""
        given = _mapped(Tensor.clone, self.given)
        may_change = {"cells"} | ({"x"} if self.kernel == "relu_squared" else set())
        results = RUNS[self.kernel](kernels, {**given})
        for name, part in given.items():
            if isinstance(part, Tensor) and name not in may_change and not part.is_meta:
                assert torch.allclose(part, self.given[name], rtol=0, atol=0, equal_nan=True), name
        return results

    def exact(self) -> Case:
        """Returns the case in fp64."""

        def double(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor.clone()

        return replace(self, given=_mapped(double, self.given))


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_mapped(change, part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **_mapped(change, parts))
    return value


def _embed(kernels: Kernels, given: dict[str, Any]) -> Results:
    return {"rows": kernels.embed(given["x"], given["ids"], given["slot"], given["last"])}


def _mix(kernels: Kernels, given: dict[str, Any]) -> Results:
    total, mixed = kernels.mix(**given)
    return {"total": total, "mixed": mixed, "cells": given["cells"]}


def _mix_by_steps(kernels: Kernels, given: dict[str, Any]) -> Results:
    """Reads some rows, then others, and returns all as if in one pass."""
    x, add, steps = given.pop("x"), given.pop("add"), given.pop("steps")
    whole = torch.empty_like(x), x.new_empty(len(given["lerp"]), *x.shape)
    for rows, at in steps:
        for into, part in zip(whole, kernels.mix(x[rows], add[rows], **given, at=at), strict=True):
            into[..., rows, :] = part
    return {"total": whole[0], "mixed": whole[1], "cells": given["cells"]}


def _end(kernels: Kernels, given: dict[str, Any]) -> Results:
    return {"rows": kernels.end(**given)}


def _products(kernels: Kernels, given: dict[str, Any]) -> Results:
    x = given.pop("x")
    return {"y": kernels.products(**given)(x)}


def _low_rank(kernels: Kernels, given: dict[str, Any]) -> Results:
    x = given.pop("x")
    gates = kernels.low_rank(**given)(x)
    return {name: part for name, part in gates._asdict().items() if part is not None}


def _relu_squared(kernels: Kernels, given: dict[str, Any]) -> Results:
    return {"y": kernels.relu_squared(given["x"])}


def _channel(kernels: Kernels, given: dict[str, Any]) -> Results:
    return {"y": kernels.channel(given["key"], given["value"])(given["x"])}


RUNS: dict[str, Callable[[Kernels, dict[str, Any]], Results]] = {
    "embed": _embed,
    "mix": _mix,
    "mix by steps": _mix_by_steps,
    "end": _end,
    "products": _products,
    "low_rank": _low_rank,
    "relu_squared": _relu_squared,
    "channel": _channel,
}


KERNELS = [name for name in RUNS if " " not in name]


class Draws:
    """Makes cases at random, the same ones for a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Returns normally distributed numbers."""
        return (torch.randn(*shape, generator=self.generator) * scale).to(dtype)

    def norm(self, width: int, dtype: torch.dtype) -> Norm:
        """Returns a layer norm's weights."""
        return Norm(1 + self.tensor(width, dtype=dtype, scale=0.1), self.tensor(width, dtype=dtype))

    def matrix(self, out: int, width: int, dtype: torch.dtype) -> Tensor:
        """Returns a matrix that keeps the size of what it is applied to."""
        return self.tensor(out, width, dtype=dtype, scale=width**-0.5)

    def lora(self, rank: int, width: int, dtype: torch.dtype, *, bias: bool) -> Lora:
        """Returns a low-rank map."""
        return Lora(
            self.matrix(rank, width, dtype),
            self.matrix(width, rank, dtype),
            self.tensor(width, dtype=dtype) if bias else None,
        )

    def spans(self, rows: int, cells: int) -> Spans:
        """Returns segments of any lengths, with marks in them, in cells of their own."""
        free = list(range(cells))
        self.random.shuffle(free)
        segments = []
        while rows:
            length = self.random.randint(1, rows)
            rows -= length
            inside = self.random.sample(
                range(1, length), min(length - 1, self.random.randint(0, 2))
            )
            marks = tuple((at, free.pop()) for at in sorted(inside))
            segments.append(Segment(length, free.pop(), free.pop(), marks))
        return Spans.of(segments, CPU)

    def each(self, rows: int, cells: int) -> Spans:
        """Returns one row of each of so many segments."""
        free = torch.randperm(cells, generator=self.generator)[: 2 * rows].int()
        return Spans.of_each(free[:rows], free[rows:])


def layer_case(
    draws: Draws,
    kernel: str,
    *,
    dtype: torch.dtype,
    rows: int,
    width: int,
    first: bool = False,
    ragged: bool = True,
    ranks: tuple[int, int, int, int] = (48, 32, 40, 20),
    inner: int = 0,
    scale: float = 1.0,
) -> Case:
    """Returns a case of a kernel.

    Args:
        draws: Where chance comes from.
        kernel: Name of the kernel.
        dtype: The compute dtype.
        rows: Number of rows, T.
        width: D.
        first: Whether the layer is the first.
        ragged: Whether segments have any length, or are of one row each.
        ranks: Ranks of decay, rate, gate and value mix.
        inner: F; four times the width if 0.
        scale: Size of what is read.
    """
    count = {"products": 3, "low_rank": 6}.get(kernel, 1)
    x = draws.tensor(count, rows, width, dtype=dtype, scale=scale)
    given: dict[str, Any] = {"x": x if count > 1 else x[0]}
    cells = 4 * rows + 4
    at = draws.spans(rows, cells) if ragged else draws.each(rows, cells)
    add = draws.tensor(rows, width, dtype=dtype, scale=scale)
    if kernel == "embed":
        ids = torch.randint(-1, rows, (rows,), generator=draws.generator).int()
        slot = torch.randperm(rows, generator=draws.generator).int()
        last = torch.randint(0, rows, (rows + 1,), generator=draws.generator).int()
        given |= {"ids": ids, "slot": slot, "last": last}
    elif kernel == "mix":
        given |= {
            "add": None if first else add,
            "norm": draws.norm(width, dtype),
            "lerp": torch.rand(draws.random.choice((1, 6)), width, generator=draws.generator).to(
                dtype
            ),
            "cells": draws.tensor(cells, width, dtype=dtype),
            "at": at,
        }
    elif kernel == "end":
        given |= {"add": add, "norm": draws.norm(width, dtype), "at": at}
    elif kernel == "products":
        given |= {
            name: draws.matrix(width, width, dtype) for name in ("receptance", "key", "value")
        }
    elif kernel == "low_rank":
        decay, rate, gate, value = ranks
        given |= {
            "decay": draws.lora(decay, width, dtype, bias=True),
            "rate": draws.lora(rate, width, dtype, bias=True),
            "value_mix": None if first else draws.lora(value, width, dtype, bias=True),
            "gate": draws.lora(gate, width, dtype, bias=False),
        }
    elif kernel == "channel":
        inner = inner or 4 * width
        given |= {
            "key": draws.matrix(inner, width, dtype),
            "value": draws.matrix(width, inner, dtype),
        }
    shape = f"{kernel} {str(dtype).removeprefix('torch.')} T={rows} D={width}"
    return Case(kernel, given, shape + " first" * first + " ragged" * ragged)


def layer_cases() -> Iterator[Case]:
    """Yields cases of every kernel: some that are to be there, and some at random."""
    draws = Draws(7)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for kernel in KERNELS:
        for dtype in dtypes:
            few = (1, 2) if dtype == torch.float16 else (draws.random.randint(1, 2),)
            for rows in (*few, draws.random.randint(5, 40)):
                width = draws.random.choice((24, 40, 48, 64))
                first = draws.random.random() < 0.5
                yield layer_case(
                    draws, kernel, dtype=dtype, rows=rows, width=width, first=first, ragged=rows > 2
                )
