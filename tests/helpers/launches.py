"""Lists the Triton kernels that a call would launch, without a card and without launching them.

What is listed is what would compile, so that it can be compiled ahead of time for any card.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: What `triton.jit` returned.
        grid: How many programs.
        kinds: Type of each argument that is known at run time alone, such as ``*fp16``.
        fixed: Arguments that are compiled in.
        options: Such as ``num_warps``.
        loose: Pointers that may be at any address.
    """

    kernel: Any
    grid: tuple[int, ...]
    kinds: dict[str, str]
    fixed: dict[str, Any]
    options: dict[str, Any]
    loose: tuple[str, ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    @property
    def compiled(self) -> tuple[object, ...]:
        """What of it is compiled: equal where nothing compiles anew."""
        return self.name, *(
            tuple(sorted(part.items(), key=str)) for part in (self.kinds, self.fixed, self.options)
        )


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Fills a list with the launches of the block."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | named
        kinds, fixed, loose = {}, {}, []
        for parameter in kernel.params:
            name, value = parameter.name, given.pop(parameter.name)
            if parameter.is_constexpr or value is None:
                fixed[name] = value
            else:
                kinds[name] = _kind(value, may_change=parameter.do_not_specialize)
            if parameter.do_not_specialize_on_alignment:
                loose.append(name)
        found.append(Launch(kernel, tuple(grid), kinds, fixed, given, tuple(loose)))

    with mock.patch.object(JITFunction, "run", note):
        yield found


def _kind(value: Any, *, may_change: bool) -> str:
    if isinstance(value, Tensor):
        names = {"float": "fp", "bfloat": "bf", "int": "i"}
        letters = str(value.dtype).removeprefix("torch.").rstrip("0123456789")
        return f"*{names[letters]}{8 * value.element_size()}"
    # Triton compiles anew where a number that it may look at is 1 or a multiple of 16.
    assert may_change, f"{value!r} would be compiled in"
    return "i32"
