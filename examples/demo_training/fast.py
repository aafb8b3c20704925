"""The recurrence compiled from `wkv.cpp`, where a C++ compiler is at hand; nothing where none is.

It is a matter of speed only: `model.wkv_chunked` gives the same numbers from plain PyTorch. Do not
hand it a state that needs a gradient; it has none for the state, and says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEAD = 64  # the only head size it is compiled for
SOURCE = Path(__file__).with_name("wkv.cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    mark = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    with tempfile.TemporaryDirectory(prefix=f"wkv-{mark}-") as folder:
        built = Path(folder) / "wkv.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
        if done.returncode != 0:
            return None
        return ctypes.CDLL(str(built))


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


class FastWKV(torch.autograd.Function):
    """(r, w, k, v, a, b: (B, T, H, 64); state) -> (outputs, state after); T a multiple of 16."""

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        p0: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Runs the sequence and keeps the state that opens each chunk."""
        if p0.requires_grad:
            raise ValueError("the compiled recurrence has no gradient for its first state")
        lib = library()
        if lib is None:
            raise RuntimeError("there is no C++ compiler; use `model.wkv_chunked`")
        bsz, t, h, n = r.shape
        inputs = [x.contiguous() for x in (r, w, k, v, a, b)]
        y, p1 = torch.empty_like(inputs[0]), torch.empty_like(p0)
        kept = torch.empty(bsz * h, t // 16, n, n)
        sizes = [ctypes.c_int64(x) for x in (bsz, t, h)] + [ctypes.c_int(torch.get_num_threads())]
        lib.wkv_forward(*sizes, *_pointers(*inputs, p0.contiguous(), y, p1, kept))
        ctx.save_for_backward(*inputs, kept)
        ctx.sizes, ctx.library = sizes, lib
        ctx.mark_non_differentiable(p1)
        return y, p1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Walks back, making the states inside each chunk again."""
        *inputs, kept = ctx.saved_tensors
        out = [torch.empty_like(x) for x in inputs]
        dy = grads[0].contiguous()
        ctx.library.wkv_backward(*ctx.sizes, *_pointers(*inputs, kept, dy, *out))
        return (*out, None)
