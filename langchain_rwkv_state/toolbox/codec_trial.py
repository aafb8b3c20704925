"""`try_codecs`: what each codec would cost for a state at hand, before a store is made with it.

It stores nothing and changes nothing. The easy mistake is to judge a codec by how far numbers move:
what that does to answers is asked with a model (`distance`), and what it does to memory with
`recall`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from langchain_rwkv_state.state.codec import decode, encode, lossy
from langchain_rwkv_state.state.codec_names import CODECS, LOSSY, CodecName
from langchain_rwkv_state.state.state import RWKVState, require_states
from langchain_rwkv_state.toolbox.distance import Reader, distance

T = TypeVar("T")


@dataclass(frozen=True)
class CodecTrial:
    """What one codec does to one state.

    Attributes:
        codec: Its name.
        nbytes: Bytes of the file.
        share: Those over the bytes of the tensors.
        encode_seconds: Median time from the state to the file's bytes, the loss included.
        decode_seconds: Median time to read and check them.
        moved: How far the numbers move, as ``rms_relative``; 0 for lossless codecs.
        kl: How far the next token's distribution moves behind the probe, in nats; ``None`` where
            no model was asked.
    """

    codec: CodecName
    nbytes: int
    share: float
    encode_seconds: float
    decode_seconds: float
    moved: float
    kl: float | None


def try_codecs(
    state: RWKVState,
    *,
    runtime: Reader | None = None,
    probe: Sequence[int] = (),
    times: int = 5,
) -> tuple[CodecTrial, ...]:
    """Tries every codec on a state.

    Args:
        state: The state, of any version.
        runtime: The model, to measure what lossy codecs do to its prediction; ``None`` for not.
        probe: Token ids to read from the state, for the same.
        times: How often each is timed.

    Raises:
        ValueError: The state holds NaN or infinity, which lossy codecs cannot keep, or a model was
            given without a probe.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, try_codecs, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=12, n_embd=768, head_size=64), "model")
        >>> [f"{each.codec} {each.share:.2f}" for each in try_codecs(zero)][2:]
        ['fp16 0.50', 'bf16 0.50', 'int8 0.26', 'int4 0.14']
    """
    require_states("try_codecs", state)
    return tuple(_try(state, codec, runtime, probe, times) for codec in CODECS)


def _try(
    state: RWKVState, codec: CodecName, runtime: Reader | None, probe: Sequence[int], times: int
) -> CodecTrial:
    data, encode_seconds = _timed(lambda: encode(lossy(state, codec), codec=codec), times)
    back, decode_seconds = _timed(lambda: decode(data).state, times)
    named = RWKVState(state.layout, dict(back), state.derivation)
    kl = None
    if runtime is not None:
        asked = distance(state, named, "logits_kl", runtime=runtime, probe=probe)
        kl = asked.total if codec in LOSSY else 0.0
    return CodecTrial(
        codec=codec,
        nbytes=len(data),
        share=len(data) / state.layout.nbytes,
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        moved=distance(state, named, "rms_relative").total,
        kl=kl,
    )


def _timed(run: Callable[[], T], times: int) -> tuple[T, float]:
    seconds = []
    for _ in range(max(1, times)):
        start = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - start)
    return found, median(seconds)
