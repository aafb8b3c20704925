"""The codecs: what each loses, that it loses it once, and that no reference stands for both."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state import (
    CODECS,
    LOSSY,
    RWKVState,
    StateLayout,
    decode,
    distance,
    encode,
    lossy,
    renormalise,
    zero_state,
)
from langchain_rwkv_state.state.packing import Stack, pack, unpack
from tests.helpers.states import random_state
from tests.unit_tests.state.test_state import LAYOUTS, resealed
from tests.unit_tests.toolbox.test_algebra import a_state

SMALL = StateLayout.of(7, n_layer=1, n_embd=8, head_size=8)
LARGE = StateLayout.of(7, n_layer=12, n_embd=768, head_size=64)
ERRORS = {"fp16": 6e-4, "bf16": 5e-3, "int8": 2e-2, "int4": 0.2}
"""Largest relative distance of a random state from what the codec keeps of it."""
SHARES = {"exact": 1.002, "zstd": 0.87, "fp16": 0.502, "bf16": 0.502, "int8": 0.27, "int4": 0.15}
"""Largest share of fp32's bytes."""


def same_bits(a, b):
    return all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)


def kept(state, codec):
    """Returns what comes back from a file."""
    return decode(encode(lossy(state, codec), codec=codec)).state


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: f"{each.version}-{each.n_layer}")
def test_what_a_file_gives_back_is_what_the_codec_keeps(codec, layout):
    state = lossy(random_state([1, 2], layout=layout), codec).with_system_digest("digest")
    found = decode(encode(state, codec=codec, parent="p", ref="r", created_seconds=5.0))
    assert found.state == state
    assert found.codec == codec
    assert (found.parent, found.ref, found.created_seconds) == ("p", "r", 5.0)
    assert found.state.system_digest == "digest"
    assert same_bits(found.state, state)


@pytest.mark.parametrize("codec", ["exact", "zstd"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: f"{each.version}-{each.n_layer}")
def test_lossless_codecs_keep_every_bit(codec, layout):
    values = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-42, 3e38, -1.5]
    state = random_state([1], layout=layout)
    tensors = {name: state[name] for name in state}
    for tensor in tensors.values():
        tensor.view(-1)[: len(values)] = torch.tensor(values)
    odd = RWKVState(layout, tensors, state.derivation)
    assert lossy(odd, codec) is odd
    assert decode(encode(odd, codec=codec)).state == odd


@given(
    codec=st.sampled_from(sorted(LOSSY)),
    version=st.sampled_from([4, 5, 6, 7]),
    tokens=st.lists(st.integers(0, 99), min_size=1, max_size=5),
    size=st.sampled_from([1e-30, 1e-6, 1.0, 1e5, 1e30]),
)
def test_a_codec_loses_its_share_once(codec, version, tokens, size):
    state = a_state(version, tokens)
    tensors = {
        name: state[name] * size if name.endswith(("att_kv", "att_aa")) else state[name]
        for name in state
    }
    state = RWKVState(state.layout, tensors, state.derivation)
    first = lossy(state, codec)
    again = lossy(first, codec)
    assert same_bits(first, again)
    assert first.derivation not in (state.derivation, again.derivation)
    assert first.n_tokens == state.n_tokens
    meant = renormalise(state)
    for name in state:
        gap = float((first[name].double() - meant[name].double()).norm())
        limit = ERRORS[codec] if size > 1e-20 or codec != "fp16" else 1.1  # below fp16's numbers
        assert gap <= limit * float(meant[name].double().norm()), name


@pytest.mark.parametrize("codec", sorted(LOSSY))
def test_a_lossy_file_takes_no_exact_state(codec):
    with pytest.raises(ValueError, match=f"lossy.*'{codec}'"):
        encode(random_state([1]), codec=codec)


@pytest.mark.parametrize("codec", sorted(LOSSY))
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_lossy_codec_keeps_no_nan(codec, wrong):
    state = random_state([1])
    tensors = {name: state[name] for name in state}
    tensors["blocks.1.att_kv"][0, 0, 0] = wrong
    with pytest.raises(ValueError, match="NaN or infinity"):
        lossy(RWKVState(state.layout, tensors, state.derivation), codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", [4, 5, 6, 7])
def test_the_zero_state_is_kept_whole(codec, version):
    layout = {4: LAYOUTS[0], 5: LAYOUTS[1], 6: LAYOUTS[2], 7: LAYOUTS[3]}[version]
    zero = zero_state(layout, "model")
    assert same_bits(kept(zero, codec), zero)


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_is_as_small_as_promised(codec):
    state = random_state([1], layout=LARGE)
    assert len(encode(lossy(state, codec), codec=codec)) <= SHARES[codec] * LARGE.nbytes


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_state_gives_the_same_bytes(codec):
    state = lossy(random_state([1]), codec)
    one, other = (encode(state, codec=codec, created_seconds=1) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("codec", CODECS)
def test_every_truncation_and_every_bit_flip_is_refused(codec):
    data = encode(lossy(random_state([1], layout=SMALL), codec), codec=codec)
    for size in range(0, len(data), 7):
        with pytest.raises(StateCorrupt):
            decode(data[:size])
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        with pytest.raises(StateCorrupt):
            decode(flipped)


def renamed(data, codec):
    """Returns a file that says it has another codec, with a right checksum."""
    size = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"])
    return resealed(data, {"about": json.dumps(about | {"codec": codec})})


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_under_another_codecs_name_is_refused(codec):
    data = encode(lossy(random_state([1]), codec), codec=codec)
    assert decode(renamed(data, codec)).codec == codec
    for other in [*(set(CODECS) - {codec}), "int2", None, 7]:
        with pytest.raises(StateCorrupt):
            decode(renamed(data, other))


@pytest.mark.parametrize("codec", CODECS)
def test_a_forged_layout_is_refused_before_it_is_unpacked(codec):
    data = encode(lossy(random_state([1], layout=SMALL), codec), codec=codec)
    for change in ('"n_embd":8', '"n_embd":1048576'), ('"head_size":8', '"head_size":4096'):
        with pytest.raises(StateCorrupt):
            decode(resealed(data, {"layout": SMALL.to_json().replace(*change)}))


def test_a_frame_that_says_it_is_longer_is_not_unpacked():
    stack = Stack.of("att_kv.fp32", SMALL.specs[1], 1, 8)
    stored = pack("zstd", stack, torch.zeros(1, 1, 8, 8))
    longer = Stack("att_kv.fp32", SMALL.specs[1], 2, 8)
    with pytest.raises(ValueError, match="unpacks to 256 bytes, not to 512"):
        unpack("zstd", longer, stored)
    stored["att_kv.fp32.zstd"] = torch.cat([stored["att_kv.fp32.zstd"], torch.zeros(3).byte()])
    with pytest.raises(ValueError):
        unpack("zstd", stack, stored)


def test_an_odd_number_of_numbers_fits_into_nibbles():
    layout = StateLayout.of(7, n_layer=1, n_embd=9, head_size=3)
    state = random_state([1], layout=layout)
    assert distance(kept(state, "int4"), state, "rms_relative").total < 0.3


@pytest.mark.parametrize("codec", CODECS)
def test_a_saved_file_is_of_its_codec(tmp_path, codec):
    state = random_state([1])
    state.save(tmp_path / "s", codec=codec)
    assert RWKVState.load(tmp_path / "s") == lossy(state, codec)
    with pytest.raises(ValueError, match="int2"):
        state.save(tmp_path / "s", codec="int2")  # type: ignore[arg-type]
    assert RWKVState.load(tmp_path / "s") == lossy(state, codec)


@pytest.mark.parametrize("codec", sorted(LOSSY))
def test_a_model_goes_on_from_what_is_kept(runtime, read, codec):
    state = read([11, 4, 250, 17, 88, 3])
    divergence = distance(
        state, _as(state, lossy(state, codec)), "logits_kl", runtime=runtime, probe=[5]
    )
    assert divergence.total < {"fp16": 1e-6, "bf16": 1e-3, "int8": 1e-3, "int4": 0.3}[codec]


def _as(state, other):
    return RWKVState(state.layout, dict(other), state.derivation)
