"""What each codec would cost: its file's true size, and a loss only where it is lossy."""

from __future__ import annotations

import math

import pytest

from langchain_rwkv_state.state import (
    CODECS,
    LOSSY,
    RWKVState,
    StateLayout,
    encode,
    lossy,
    try_codecs,
)
from tests.helpers.states import random_state

LAYOUTS = [
    StateLayout.of(4, n_layer=2, n_embd=64),
    StateLayout.of(5, n_layer=2, n_embd=64, head_size=32),
    StateLayout.of(6, n_layer=2, n_embd=64, head_size=32, shift_dtype="bf16"),
    StateLayout.of(7, n_layer=2, n_embd=64, head_size=64, shift_dtype="fp16"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: each.version)
def test_every_codec_is_tried_and_only_lossy_ones_move_numbers(layout):
    state = random_state([1], layout=layout)
    found = {each.codec: each for each in try_codecs(state, times=1)}
    assert tuple(found) == CODECS
    for codec, each in found.items():
        size = len(encode(lossy(state, codec), codec=codec))
        assert abs(each.nbytes - size) < 40  # the time of writing has more digits or fewer
        assert each.share == each.nbytes / layout.nbytes
        assert (each.moved > 0) == (codec in LOSSY)
        assert each.encode_seconds > 0 < each.decode_seconds
        assert each.kl is None
    assert found["int4"].moved > found["int8"].moved > found["fp16"].moved


def test_a_model_says_what_becomes_of_its_prediction(runtime, read):
    found = try_codecs(read([1, 2, 3]), runtime=runtime, probe=[5], times=1)
    kl = {each.codec: each.kl for each in found}
    assert kl["exact"] == kl["zstd"] == 0
    assert kl["fp16"] is not None
    assert kl["int4"] is not None
    assert 0 <= kl["fp16"] < kl["int4"]
    with pytest.raises(ValueError, match="probe"):
        try_codecs(read([1]), runtime=runtime, times=1)


def test_a_broken_state_is_refused():
    state = random_state([1])
    tensors = {name: state[name] for name in state}
    tensors["blocks.0.att_kv"][0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        try_codecs(RWKVState(state.layout, tensors, state.derivation))
