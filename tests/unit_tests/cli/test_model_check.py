"""What ``doctor --model`` says of memory."""

import pytest
import torch

from langchain_rwkv_state.cli import model_check
from langchain_rwkv_state.runtime import needed_memory
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_contents
from langchain_rwkv_state.runtime.loader import locate
from langchain_rwkv_state.runtime.strategy import Strategy


@pytest.mark.parametrize(("text", "states"), [("cpu fp32", 1), ("cuda fp16", 3)])
def test_a_slot_on_a_card_takes_three_states(
    monkeypatch: pytest.MonkeyPatch, text: str, states: int
) -> None:
    path = locate("demo")
    tensors: dict[str, torch.Tensor] = read_contents(path, mapped=True).tensors
    found, strategy = Checkpoint.of(tensors, path), Strategy.parse(text)
    weights = needed_memory.weights_bytes(tensors, strategy.stages[0])
    free = weights + 60 * found.layout.nbytes
    monkeypatch.setattr(needed_memory, "free_bytes", lambda stage: free)
    told = {
        each.name: each for each in model_check._sizes(found, tensors, strategy, is_native=True)
    }
    assert told["conversations"].figure == 60 // states
    assert told["memory of slots"].figure == 64 * states * found.layout.nbytes
    assert ("3 states each" in told["memory of slots"].value) == (states == 3)
