"""Says where models of tests run: on the CPU, and on a CUDA card where there is one.

A test marked ``each_device`` that uses `make_chat` runs on both; parameters of other tests that
need a card are made by `on_card`. On a card models compute in fp32, so that a test's tolerances and
texts hold there too.
"""

from __future__ import annotations

import os
from typing import Any

# Asks the driver: PyTorch's own way begins CUDA in this process, and then none may be forked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import pytest
import torch
from _pytest.mark import ParameterSet

HAS_CARD = torch.cuda.is_available()
ON_CPU = "cpu fp32" if HAS_CARD else "auto"
ON_CARD = "native cuda fp32"


def on_card(*values: Any, name: str | None = None) -> ParameterSet:
    """Returns parameters that need a card."""
    no_card = pytest.mark.skipif(not HAS_CARD, reason="no CUDA device")
    return pytest.param(*values, id=name, marks=[pytest.mark.cuda, no_card])


EACH_STRATEGY = (pytest.param(ON_CPU, id="cpu"), on_card(ON_CARD, name="cuda"))
"""Of RWKV-7."""
