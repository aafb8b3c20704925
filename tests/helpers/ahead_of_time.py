"""Compiles Triton kernels for cards that are not here, and tells what they take of one.

Triton must not interpret (`TRITON_INTERPRET`) in the process that imports the kernel and this.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
MOST_REGISTERS = 255
MOST_SHARED = {
    capability: kilobytes * 1024
    for capability, kilobytes in zip(CAPABILITIES, (64, 163, 99, 99, 227, 227, 99), strict=True)
}
"""Bytes of shared memory that a program can have."""


class Compiled(NamedTuple):
    """A kernel as it would run on a card.

    Attributes:
        registers: Of a thread.
        spilled: Bytes of a thread that found no register.
        shared: Bytes of a program's shared memory.
        ptx: The kernel in NVIDIA's intermediate language.
    """

    registers: int
    spilled: int
    shared: int
    ptx: str

    def count(self, pattern: str) -> int:
        """Returns how many places of the PTX match a regular expression."""
        return len(re.findall(pattern, self.ptx))


def compiled_for(
    capability: int,
    kernel: Any,  # Triton has no types
    kinds: Mapping[str, str],
    fixed: Mapping[str, Any],
    *,
    loose: Collection[str] = (),
    num_warps: int = 4,
    **options: Any,
) -> Compiled:
    """Compiles a kernel as a call with tensors of these types would.

    Args:
        capability: Of the card, such as 86 for 8.6.
        kernel: What `triton.jit` returned.
        kinds: Type of each argument that is not in `fixed`, such as ``*fp16`` or ``i32``.
        fixed: The `tl.constexpr` arguments; ``None`` too, for a tensor that is not given.
        loose: Pointers that may be at any address; the others are at multiples of 16.
        num_warps: Warps of a program.
        options: Others of a call, such as ``num_stages``.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    assert {*names} == {*kinds, *fixed}, {*names} ^ {*kinds, *fixed}
    made = triton.compile(
        ASTSource(
            fn=kernel,
            signature={name: kinds.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in fixed.items()},
            attrs={
                (names.index(name),): [["tt.divisibility", 16]]
                for name, kind in kinds.items()
                if kind.startswith("*") and name not in loose
            },
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, **options},
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(made.asm["cubin"])
        use = subprocess.run(
            [tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", use)
    assert found, use
    return Compiled(int(found[1]), int(found[2]), made.metadata.shared, made.asm["ptx"])
