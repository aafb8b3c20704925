"""Runs the command line in a process of its own, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

RWKV_STATE = [sys.executable, "-m", "langchain_rwkv_state"]
PATIENCE_SECONDS = 500  # a busy machine takes its time to import PyTorch


def rwkv_state(
    store: Path, *words: str, text: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command on a store, with a text on standard input; returns how it ended."""
    return subprocess.run(
        [*RWKV_STATE, *words, "--store", str(store)],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        **options,
    )
