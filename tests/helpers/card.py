"""Models on a card that is not here: plain kernels, and a stand-in for streams and graphs."""

from __future__ import annotations

from pathlib import Path

import torch

from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.cuda import sampling
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.model import CudaModel
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.strategy import Stage
from tests.helpers.checkpoints import DEFAULT_VOCAB, random_checkpoint

PLAIN = ChosenKernels(PlainKernels(), sampling.sample, recordable=False)


def card_runtime(
    stage: Stage | None = None,
    *,
    kernels: ChosenKernels | None = PLAIN,
    n_embd: int = 64,
    vocab: int = DEFAULT_VOCAB,
) -> RuntimeHandle:
    """Returns a random RWKV-7 as a card runs it, on the CPU's memory; `StandIn` must be there."""
    tensors, checkpoint = _random(n_embd, vocab)
    model = CudaModel(tensors, checkpoint, stage or Stage("cpu", "fp32"), kernels=kernels)
    return RuntimeHandle(model, lambda: None, name="random")


def host_runtime(*, n_embd: int = 64, vocab: int = DEFAULT_VOCAB) -> RuntimeHandle:
    """Returns the same model as the CPU runs it, in plain PyTorch."""
    tensors, checkpoint = _random(n_embd, vocab)
    model = NativeModel(tensors, checkpoint, Stage("cpu", "fp32"), compiled=False)
    return RuntimeHandle(model, lambda: None, name="random")


def greedy(
    logits: torch.Tensor,
    slot: torch.Tensor,
    choose: torch.Tensor,
    mask_at: torch.Tensor,
    masks: torch.Tensor,
    arrays: SamplerArrays,
    out: torch.Tensor,
) -> None:
    """A choice that can be recorded; `sampling.sample` asks the card how it goes on."""
    best = logits.argmax(1).int()
    out.copy_(torch.stack([torch.where(choose != 0, best, -1), best, torch.ones_like(best)]))
    at = slot.long()
    arrays.last[at] = torch.where(choose != 0, best, arrays.last[at])


def _random(n_embd: int, vocab: int) -> tuple[dict[str, torch.Tensor], Checkpoint]:
    tensors = random_checkpoint(7, n_embd=n_embd, head_size=32, vocab=vocab)
    return tensors, Checkpoint.of(tensors, Path("random.pth"))
