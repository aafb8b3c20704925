"""Prints, as JSON, what loading and closing a model does to this process's memory.

A process of its own, since one that ran other tests gives back less: what they left lies between.
"""

from __future__ import annotations

import json
import sys

import psutil

from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.runtime.rwkv_package import adapter as package


def main(small_path: str, path: str) -> None:
    # So that the small model, too, makes PyTorch load its compiler, which stays.
    package._SCRIPTED_FROM_BYTES = 0
    small = load_runtime(small_path, "package cpu fp32")
    small.forward([1, 2], small.zero_state())
    small.close()
    process = psutil.Process()
    before = process.memory_info().rss

    def grown() -> int:
        return process.memory_info().rss - before

    runtimes = [load_runtime(path, "package cpu fp32") for _ in range(3)]
    runtimes[0].forward([1, 2], runtimes[0].zero_state())
    loaded = grown()
    for runtime in runtimes[1:]:
        runtime.close()
    one_left = grown()
    runtimes[0].close()
    json.dump({"loaded": loaded, "one_left": one_left, "closed": grown()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
