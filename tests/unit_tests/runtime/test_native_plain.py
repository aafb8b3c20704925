"""The plain pass in fp16 and bf16, on weights that are hard for narrow numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.native.plain import DECAY, relu_squared
from langchain_rwkv_state.runtime.strategy import Stage
from langchain_rwkv_state.state import RWKVState
from tests.helpers.checkpoints import random_checkpoint

Tensors = dict[str, torch.Tensor]

WIDTH, HEAD = 64, 32
IDS = [5, 7, 11, 5, 3, 200]
narrow = pytest.mark.parametrize("dtype", ["fp16", "bf16"])


def load(tensors: Tensors, dtype: str) -> RuntimeHandle:
    checkpoint = Checkpoint.of(tensors, Path("m.pth"))
    model = NativeModel(dict(tensors), checkpoint, Stage("cpu", dtype), compiled=False)
    return RuntimeHandle(model, lambda: None, name="m")


def difference(tensors: Tensors, dtype: str) -> float:
    """Returns how far the likelihoods of the next token are from those in fp32."""
    found = []
    for each in (dtype, "fp32"):
        runtime = load(tensors, each)
        logits, _ = runtime.forward(IDS, runtime.zero_state())
        assert logits.isfinite().all()
        found.append(logits.softmax(0))
    return float((found[0] - found[1]).abs().max())


@narrow
@pytest.mark.parametrize("key", [255.0, 256.5, 270.0])
def test_a_channel_mix_beyond_256_stays_finite_and_near(dtype: str, key: float) -> None:
    tensors = random_checkpoint(7, n_embd=WIDTH, head_size=HEAD)
    for layer in ("blocks.0.", "blocks.1."):
        # Whatever is read, the channel-mix reads ones, and its first number becomes `key`.
        tensors[layer + "ln2.weight"].zero_()
        tensors[layer + "ln2.bias"].fill_(1)
        tensors[layer + "ffn.x_k"].zero_()
        tensors[layer + "ffn.key.weight"][0] = key / WIDTH
        tensors[layer + "ffn.value.weight"][:, 0] *= 1e-4
    assert difference(tensors, dtype) < 0.02


def test_the_square_is_the_same_where_it_fits() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.randn(1000).to(dtype) * 50
        assert torch.equal(relu_squared(x), torch.relu(x) ** 2)
    assert relu_squared(torch.tensor([math.inf, -math.inf]).half()).tolist() == [65504, 0]
    assert relu_squared(torch.tensor([math.nan]).half()).isnan()  # a fault is not hidden


@narrow
def test_a_head_without_keys_removes_nothing(dtype: str) -> None:
    tensors = random_checkpoint(7, n_embd=WIDTH, head_size=HEAD)
    for layer in ("blocks.0.", "blocks.1."):
        tensors[layer + "att.k_k"][..., :HEAD] = 0
    assert difference(tensors, dtype) < 0.02


@narrow
def test_a_decay_is_as_long_as_its_bias_says(dtype: str) -> None:
    tensors = random_checkpoint(7, n_embd=WIDTH, head_size=HEAD)
    w0 = torch.linspace(-9, -2, WIDTH)
    for layer in ("blocks.0.", "blocks.1."):
        tensors[layer + "att.w1"].zero_()
        tensors[layer + "att.w0"] = w0.view_as(tensors[layer + "att.w0"])
        tensors[layer + "att.key.weight"].zero_()  # so that a state only decays
    runtime = load(tensors, dtype)
    zero = runtime.zero_state()
    full = {n: torch.ones_like(zero[n]) if n.endswith("kv") else zero[n] for n in zero}
    _, after = runtime.forward([5], RWKVState(zero.layout, full, zero.derivation))
    lost = 1 - after["blocks.1.att_kv"][:, 0].flatten()
    torch.testing.assert_close(lost, 1 - torch.exp(DECAY * w0.sigmoid()), rtol=2e-3, atol=1e-7)
