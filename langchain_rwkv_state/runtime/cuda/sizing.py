"""Says how many requests a card can serve at once, beside the weights and what passes need.

All of it is arithmetic with shapes, done before anything is taken: a card whose memory runs out in
the middle of a step fails whoever is served. The reserve is an estimate and has not been held
against a card yet.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.cuda.recordings import sizes

logger = logging.getLogger(__name__)

CELLS_A_SLOT = 3
"""Cells for each request that is served: its state, what it reads into, and a copy of an earlier
one."""

_FREE_SHARE = 0.05  # left alone: PyTorch's memory comes in pieces that do not fill up
_WIDE = 24  # tensors as wide as the model that a row has at once: mixed 6, products 3, gates 4, ...
_FP32 = 4
_OF_CHUNKS = 8  # fp32 numbers of a row that the recurrence of a prompt keeps between its launches
_OF_LOGITS = 4  # logits in fp32, and what the choice from them keeps beside
_RECORDING_BYTES = 8 << 20  # the launches of one recording, in the driver
_WORKSPACE_BYTES = 96 << 20  # cuBLAS keeps 32 MiB a stream on Hopper; ours are three


@dataclass(frozen=True)
class PassShape:
    """What the memory of passes depends on.

    Attributes:
        n_embd: Width of the model, D.
        n_ffn: Width of the channel-mix, F.
        vocab_size: Number of logits, V.
        itemsize: Bytes of a number in the compute dtype.
        rows: Most ids in a pass.
        slots: Most slots of a step, each of which has logits.
    """

    n_embd: int
    n_ffn: int
    vocab_size: int
    itemsize: int
    rows: int
    slots: int

    @property
    def reserve_bytes(self) -> int:
        """Bytes to keep free for eager passes and recordings.

        Example:
            >>> shape = PassShape(2048, 8192, 65536, 2, rows=1024, slots=64)
            >>> shape.reserve_bytes >> 20
            522
        """
        decoding = sizes(self.slots)
        eager = self._row_bytes * max(self.rows, self.slots)
        # All recordings share what the largest takes, but for the logits, which each keeps.
        recorded = self._row_bytes * decoding[-1] + len(decoding) * _RECORDING_BYTES
        logits = self.vocab_size * (
            sum(decoding) * self.itemsize + decoding[-1] * _OF_LOGITS * _FP32
        )
        return eager + recorded + logits + _WORKSPACE_BYTES

    @property
    def _row_bytes(self) -> int:
        # The channel-mix has its product and the square; what is fp32 inside is of fewer tensors.
        wide = (_WIDE * self.n_embd + 2 * self.n_ffn) * self.itemsize
        return wide + (4 + _OF_CHUNKS) * self.n_embd * _FP32


def slots_that_fit(asked: int, cell_bytes: int, *, free: int, reserve: int) -> int:
    """Returns how many requests to serve at once: as many as were asked for, or as fit.

    Args:
        asked: Number of slots wished for.
        cell_bytes: Bytes of a cell, as `cells.cell_bytes` gives them.
        free: Free memory of the card, the weights loaded (`torch.cuda.mem_get_info`).
        reserve: What passes need, as `PassShape.reserve_bytes`.

    Raises:
        ModelLoadError: Not even one fits.
    """
    room = int(free * (1 - _FREE_SHARE)) - reserve
    fit = (room // cell_bytes - 1) // CELLS_A_SLOT  # without the spare one
    if fit < 1:
        raise ModelLoadError(
            f"The card has {_mib(free)} free beside the weights; passes take {_mib(reserve)} of it "
            f"and a state {_mib(cell_bytes)}, so that the {CELLS_A_SLOT} states of one request do "
            "not fit: end what else is on the card, or take a smaller model, fewer slots, weights "
            "in 8 bits, states in fp16 or another card."
        )
    if fit < asked:
        logger.warning(
            "%d requests at once fit on the card, not the %d asked for: each takes %d states of "
            "%s, %s are free beside the weights, and passes take %s.",
            *(fit, asked, CELLS_A_SLOT, _mib(cell_bytes), _mib(free), _mib(reserve)),
        )
    return min(fit, asked)


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.1f} MiB"
