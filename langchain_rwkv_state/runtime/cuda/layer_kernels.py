"""The kernels in Triton, gathered: what a pass asks for on a card.

A layer that reads one token of each conversation is ten launches: mix, products, two of the
low-rank maps, time-mix, output, mix, and three of the channel-mix. Each is launched on the current
device and stream, with a grid that follows from shapes alone: nothing waits for the device, so that
all can be recorded. What compiles is chosen by shapes of the model and a few bounds on the number
of rows, never by the number itself.
"""

from __future__ import annotations

from langchain_rwkv_state.runtime.cuda import (
    low_rank_kernels,
    recurrence_kernels,
    row_kernels,
    vector_kernels,
)


class TritonKernels:
    """See `Kernels`. Tensors are contiguous, and on the current device."""

    name = "Triton"
    embed = staticmethod(row_kernels.embed)
    mix = staticmethod(row_kernels.mix)
    end = staticmethod(row_kernels.end)
    products = staticmethod(vector_kernels.products)
    low_rank = staticmethod(low_rank_kernels.low_rank)
    time_mix = staticmethod(recurrence_kernels.time_mix)
    relu_squared = staticmethod(row_kernels.relu_squared)
    channel = staticmethod(vector_kernels.channel)
