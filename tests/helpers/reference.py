"""Asks the plain `rwkv` package for its logits, as a program in a process of its own.

It writes the logits after each of its readings, so that tests can compare. Nothing of this project
is imported by the program. It takes one version at a time: RWKV-7 and the older ones exclude each
other in one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

Logits = dict[str, torch.Tensor]


def reference_logits(
    paths: Sequence[Path], tokens: Sequence[int], folder: Path, *, version_7: bool
) -> list[Logits]:
    """Returns what the package computes on ``cpu fp32``.

    Args:
        paths: Checkpoints (``.pth``), all of them RWKV-7 or none.
        tokens: Tokens to read.
        folder: Where to put the results.
        version_7: Which of the two kinds the checkpoints are.

    Returns:
        For each checkpoint the logits after ``sequence`` (all tokens in one call), after ``steps``
        (one call a token) and after ``mixed`` (all but one in a call, then the last), and the
        final state of ``steps`` as ``state.0``, ``state.1``...
    """
    job = {"paths": [str(path) for path in paths], "tokens": list(tokens), "out": str(folder)}
    environ = os.environ | {"RWKV_V7_ON": str(int(version_7)), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, __file__, json.dumps(job)],
        check=True,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return [
        safetensors.torch.load_file(folder / f"{index}.safetensors") for index in range(len(paths))
    ]


def _main(text: str) -> None:
    from rwkv.model import RWKV

    job = json.loads(text)
    tokens = job["tokens"]
    for index, path in enumerate(job["paths"]):
        version_7 = os.environ["RWKV_V7_ON"] == "1"
        model = RWKV(path.removesuffix(".pth") if version_7 else path, "cpu fp32")
        found = {"sequence": model.forward(tokens, None)[0]}
        state = model.forward(tokens[:-1], None)[1]
        found["mixed"] = model.forward(tokens[-1:], state)[0]
        state = None
        for token in tokens:
            found["steps"], state = model.forward([token], state)
        found |= {f"state.{number}": tensor for number, tensor in enumerate(state or [])}
        found = {name: tensor.float().contiguous().clone() for name, tensor in found.items()}
        safetensors.torch.save_file(found, Path(job["out"]) / f"{index}.safetensors")


if __name__ == "__main__":
    _main(sys.argv[1])
