"""Holds the models that this process has loaded: one entry each, with what runs it beside it.

`_registry` counts users; here is what it counts for models. A model's memory is not given back
when its last tensor goes: the allocators keep it. It knows nothing of engines but that they end.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from langchain_rwkv_state._fork import in_forked_child
from langchain_rwkv_state._registry import Registry
from langchain_rwkv_state.runtime.cuda.recordings import capturing
from langchain_rwkv_state.runtime.handle import Model, RuntimeHandle


class SharedModel:
    """A model as this process has it once.

    Args:
        model: Its weights.
        strategy: How it runs, such as ``native cpu fp32``.

    Attributes:
        strategy: How it runs.
        runs: What answers from it, with a property ``at_work``, a method ``close``, and in
            ``known`` what was made of it with tokenizers and templates; ``None`` while nobody wants
            answers.
        lock: Held while that is made.
    """

    def __init__(self, model: Model, strategy: str) -> None:
        self._model = model
        self.strategy = strategy
        self.runs: Any = None
        self.lock = threading.Lock()

    def runtime(
        self,
        name: str,
        give_back: Callable[[], None] = lambda: None,
        *,
        tokenizer: str | None = None,
        template: str | None = None,
    ) -> RuntimeHandle:
        """Returns the model as a `Runtime`; the arguments are those of `RuntimeHandle`."""
        return RuntimeHandle(
            self._model,
            give_back,
            name=name,
            tokenizer=tokenizer,
            template=template,
            strategy=self.strategy,
        )

    @property
    def stays(self) -> bool:
        """Whether it stays for a moment though nobody uses it: it was at work just now."""
        return self.runs is not None and self.runs.at_work

    def close(self) -> None:
        """Ends what runs it; the weights go with this object."""
        if self.runs is not None:
            self.runs.close()


def return_memory() -> None:
    """Gives freed memory back to the system and to the devices, as far as they take it."""
    # Where CUDA was not begun there is nothing to give back, and asking would spoil later forks.
    # Like any clean-up, this may run while this very thread records: then some other time.
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch
    if begun and capturing.acquire(blocking=False):
        try:
            torch.cuda.empty_cache()
        finally:
            capturing.release()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)


MODELS: Registry[SharedModel] = Registry(
    return_memory, close=SharedModel.close, stays=lambda shared: shared.stays
)
"""Every model that this process has loaded, by its file and strategy.

Without users it stays until its engine has had nothing to do for a while: whoever makes a chat
object for each request does not load the weights for each.
"""


def models_at_work() -> list[Any]:
    """Returns the models that answer in this process, each with its tokenizer and template.

    Nothing is held for it. They have the attributes of `langchain_rwkv_state.loaded.Loaded`.
    """
    return [
        found
        for shared in MODELS.values()
        if shared.runs is not None
        for found in list(shared.runs.known.values())
    ]


def _after_fork_in_child() -> None:
    for shared in MODELS.values():
        shared.lock = threading.Lock()
    if MODELS.used:
        # The threads of OpenMP do not survive a fork: a second one would wait for them forever.
        torch.set_num_threads(1)


in_forked_child(_after_fork_in_child)
