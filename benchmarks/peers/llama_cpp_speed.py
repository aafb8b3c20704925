"""Runs llama.cpp on a GGUF file, through llama-cpp-python's plain bindings.

Every sequence has a state of its own in one context, and all are decoded in one batch, as
llama.cpp's server does. Only the last id's logits of a prompt are asked for.

    python -m benchmarks.peers.llama_cpp_speed MODEL.gguf THREADS
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.served import Run, serve, some_ids

_PASS = 512  # ids in one pass, llama.cpp's own default
_LONGEST = 2048  # ids of a sequence; an RWKV's state does not grow with it


class LlamaCpp:
    """A loaded model.

    Args:
        model: A GGUF file.
        threads: For decoding and for prompts.
    """

    def __init__(self, model: str, threads: int) -> None:
        self._lib: Any = importlib.import_module("llama_cpp")
        self.version = self._lib.__version__
        self._threads = threads
        self._quiet = self._lib.llama_log_callback(lambda *_: None)
        self._lib.llama_backend_init()
        self._lib.llama_log_set(self._quiet, ctypes.c_void_p(0))
        parameters = self._lib.llama_model_default_params()
        self._model = self._lib.llama_model_load_from_file(model.encode(), parameters)
        if not self._model:
            raise RuntimeError("llama.cpp does not load the model.")
        self._vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))

    def decoder(self, rows: int) -> Run:
        """Returns what decodes a batch of sequences."""
        context, position, ids = self._context(rows), 0, some_ids(rows, self._vocab)

        def run() -> None:
            nonlocal position
            context.read([(row, position, True) for row in range(rows)], ids)
            position += 1

        return run

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt into a cleared sequence."""
        context, ids = self._context(1), some_ids(length, self._vocab)

        def run() -> None:
            context.clear()
            context.read([(0, place, place == length - 1) for place in range(length)], ids)

        return run

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Returns the logits behind a prompt."""
        context = self._context(1)
        context.read([(0, place, place == len(ids) - 1) for place in range(len(ids))], ids)
        return context.logits(len(ids) - 1, self._vocab)

    def _context(self, sequences: int) -> _Context:
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = _LONGEST * sequences
        parameters.n_batch, parameters.n_ubatch = _LONGEST, _PASS
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self._threads
        return _Context(self._lib, self._lib.llama_init_from_model(self._model, parameters))


class _Context:
    """Sequences and their states; freed with its last reference."""

    def __init__(self, lib: Any, handle: Any) -> None:
        if not handle:
            raise RuntimeError("llama.cpp makes no context.")
        self._lib, self._handle = lib, handle
        weakref.finalize(self, lib.llama_free, handle)

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._handle), True)

    def read(self, rows: list[tuple[int, int, bool]], ids: Sequence[int]) -> None:
        """Reads ids; a row is (sequence, position, whether its logits are wanted)."""
        batch = self._lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for row, (sequence, position, wanted) in enumerate(rows):
            batch.token[row], batch.pos[row] = ids[row], position
            batch.n_seq_id[row], batch.logits[row] = 1, wanted
            batch.seq_id[row][0] = sequence
        failed = self._lib.llama_decode(self._handle, batch)
        self._lib.llama_get_logits_ith(self._handle, len(rows) - 1)  # waits for the end
        self._lib.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode failed with {failed}.")

    def logits(self, row: int, vocab: int) -> list[float]:
        return list(self._lib.llama_get_logits_ith(self._handle, row)[:vocab])


if __name__ == "__main__":
    serve(lambda arguments: LlamaCpp(arguments[0], int(arguments[1])))
