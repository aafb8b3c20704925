"""Opens a store in a fresh process and loads a session's state: the time that a resume takes.

It loads no model: what is timed is what stands between a loaded model and its answer. Imports are
not counted, since a program pays them once, whatever it resumes.

    python -m benchmarks.resume DIRECTORY SESSION
"""

from __future__ import annotations

import json
import sys
import time

import torch

from langchain_rwkv_state import DiskStateStore


def main(directory: str, session: str) -> None:
    torch.zeros(1).clone()  # PyTorch's own first use
    start = time.perf_counter()
    store = DiskStateStore(directory)
    opened = time.perf_counter()
    head = store.head(session)
    found = time.perf_counter()
    if head is None:
        raise SystemExit(f"There is no session {session!r} in {directory}.")
    state = store.get(head)
    done = time.perf_counter()
    again = time.perf_counter()
    store.get(head)
    last = time.perf_counter()
    times = {"open": opened - start, "head": found - opened, "get": done - found}
    times |= {"total": done - start, "get_again": last - again, "tokens": state.n_tokens}
    print(json.dumps(times))
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
