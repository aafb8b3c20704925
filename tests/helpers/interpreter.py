"""A process whose Triton interprets its kernels: it settles at its import whether it does."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Interpreter:
    """Runs functions of test modules, one after the other, in one process of its own.

    It begins with the first of them, so that all together import PyTorch and Triton once.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, initializer=_interpret)

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.shutdown()

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Returns what a function gives there; it is named by its module, as are its arguments'."""
        import torch

        saved = self._process.submit(_saved, function, _bytes(arguments)).result()
        found: T = torch.load(io.BytesIO(saved), weights_only=False)
        return found


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from triton.runtime import interpreter

    # The interpreter keeps bf16 as bits, and multiplies them as whole numbers.
    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        for part in (a, b):
            if part.data.dtype == np.uint16:
                part.data = (part.data.astype(np.uint32) << 16).view(np.float32)
        return product(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _saved(function: Callable[..., Any], arguments: bytes) -> bytes:
    import torch

    return _bytes(function(*torch.load(io.BytesIO(arguments), weights_only=False)))


def _bytes(value: Any) -> bytes:
    """Tensors as a file has them: a queue would hand on their memory."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
