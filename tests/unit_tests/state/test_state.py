"""States as values, and the bytes they become: nothing lost, nothing changed, nothing believed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
import stat
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state import (
    CODECS,
    Derivation,
    Fingerprint,
    RWKVState,
    StateLayout,
    decode,
    encode,
    is_reference,
    lossy,
    reference,
    zero_state,
)
from tests.helpers.states import LAYOUT, random_state

ROOT = Path(__file__).parents[3]
TOKENS = st.lists(st.integers(0, 65535), max_size=20)
LAYOUTS = [
    StateLayout.of(4, n_layer=2, n_embd=16),
    StateLayout.of(5, n_layer=2, n_embd=64, head_size=32),
    StateLayout.of(6, n_layer=1, n_embd=64, head_size=64, shift_dtype="fp16"),
    StateLayout.of(7, n_layer=3, n_embd=64, head_size=64, shift_dtype="bf16"),
    StateLayout(7, 3, 64, 1, 64, ("fp16", "fp32", "fp16")),
]


def resealed(data: bytes, change: dict[str, str | None]) -> bytes:
    """Returns the file with other header texts and a right checksum: what a forger would write."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for key, value in change.items():
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value
    header["__metadata__"]["checksum"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text + data[8 + size :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    mark = b'"checksum":"'
    return blank.replace(mark + b"0" * 64, mark + digest, 1)


# -- the codec -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: f"{each.version}-{each.n_layer}")
def test_every_layout_comes_back_bit_for_bit(layout):
    state = random_state([1, 2], layout=layout).with_system_digest("digest")
    found = decode(encode(state, parent="p", ref="r", created_seconds=5.0))
    assert found.state == state
    assert (found.parent, found.ref, found.created_seconds) == ("p", "r", 5.0)
    assert found.state.system_digest == "digest"
    assert found.state.layout == layout


def test_odd_numbers_come_back_bit_for_bit():
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    tensors = {spec.name: values.repeat(spec.shape[0] // 4) for spec in LAYOUTS[0].specs}
    state = RWKVState(LAYOUTS[0], tensors, Derivation("model"))
    assert decode(encode(state)).state == state


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, StateLayout.of(7, n_layer=12, n_embd=768, head_size=64)]
)
def test_a_file_is_its_nominal_size_and_less_than_2_kb(layout):
    assert len(encode(random_state([1], layout=layout))) <= layout.nbytes + 2000


def test_the_same_state_gives_the_same_bytes():
    assert encode(random_state([1]), created_seconds=1) == encode(
        random_state([1]), created_seconds=1
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shift", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("version", [4, 7])
def test_a_file_is_what_the_safetensors_library_writes(version, shift, codec):
    size = None if version == 4 else 64
    layout = StateLayout.of(version, n_layer=3, n_embd=128, head_size=size, shift_dtype=shift)
    data = encode(lossy(random_state([1], layout=layout), codec), codec=codec)
    head = 8 + int.from_bytes(data[:8], "little")
    named = json.loads(data[8:head])
    theirs = safetensors.torch.save(safetensors.torch.load(data), named["__metadata__"])
    their_head = 8 + int.from_bytes(theirs[:8], "little")
    assert json.loads(theirs[8:their_head]) == named
    assert theirs[their_head:] == data[head:]
    assert head % 8 == 0


def test_every_truncation_is_refused():
    data = encode(random_state([1], layout=StateLayout.of(7, n_layer=1, n_embd=8, head_size=8)))
    for size in range(len(data)):
        with pytest.raises(StateCorrupt):
            decode(data[:size])
    with pytest.raises(StateCorrupt):
        decode(data + b"\x00")


def test_every_single_bit_flip_is_refused():
    data = encode(random_state([1], layout=StateLayout.of(7, n_layer=1, n_embd=8, head_size=8)))
    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            with pytest.raises(StateCorrupt):
                decode(flipped)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 a zip file",
        pickle.dumps({"a": 1}),
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (1 << 15).to_bytes(8, "little") + b"[" * (1 << 15),
        safetensors.torch.save({"a": torch.zeros(2)}),
        safetensors.torch.save({"a": torch.zeros(2)}, metadata={"format": "pt"}),
        safetensors.torch.save(
            {"a": torch.zeros(2)}, metadata={"format": "langchain-rwkv-state/x"}
        ),
    ],
    ids=range(9),
)
def test_a_foreign_file_is_refused(data):
    with pytest.raises(StateCorrupt):
        decode(data)


def test_a_future_version_is_told_to_upgrade():
    data = resealed(encode(random_state([1])), {"format": "langchain-rwkv-state/2"})
    with pytest.raises(StateCorrupt, match=r"version 2.*upgrade"):
        decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"about": None},
        {"layout": None},
        {"about": "{}"},
        {"about": "[" * 100_000},
        {"layout": "[" * 100_000},
        {"layout": LAYOUTS[0].to_json()},
        {"layout": '{"version":8}'},
        {"layout": LAYOUT.to_json().replace('"n_layer":2', '"n_layer":2000000')},
        {"layout": LAYOUT.to_json().replace('"version":7', '"version":7.0')},
        {"format": "langchain-rwkv-state/0"},
    ],
    ids=str,
)
def test_a_forged_header_with_a_right_checksum_is_refused(change):
    data = encode(random_state([1]))
    assert decode(resealed(data, {})).state == random_state([1])
    with pytest.raises(StateCorrupt):
        decode(resealed(data, change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("codec", "int4"),
        ("n_tokens", -1),
        ("n_tokens", "1"),
        ("token_hash", "xyz"),
        ("fingerprint", None),
        ("created", "now"),
        ("parent", 7),
    ],
)
def test_a_forged_origin_with_a_right_checksum_is_refused(key, value):
    data = encode(random_state([1]))
    size = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"])
    about[key] = value
    with pytest.raises(StateCorrupt):
        decode(resealed(data, {"about": json.dumps(about)}))


def test_another_models_state_names_both_models():
    data = encode(random_state([1], fingerprint="mine"))
    with pytest.raises(StateMismatch, match=r"'mine'.*'yours'"):
        decode(data, fingerprint="yours")


def test_another_reference_is_refused():
    with pytest.raises(StateCorrupt, match="holds the state a"):
        decode(encode(random_state([1]), ref="a"), ref="b")


def test_the_page_on_the_format_reads_a_state_without_this_package(tmp_path):
    page = (ROOT / "docs" / "state_format.md").read_text()
    made, code = re.findall(r"```python\n(.*?)```", page, re.S)[:2]
    assert "save(" in made  # what the second reads, so that the page runs as it stands
    assert "langchain_rwkv_state" not in code
    for layout in (LAYOUTS[0], LAYOUTS[4]):
        state = random_state([1, 2], layout=layout)
        state.save(tmp_path / "state.safetensors")
        found: dict = {}
        exec(code.replace('"state.safetensors"', repr(str(tmp_path / "state.safetensors"))), found)
        assert found["n_tokens"] == 2
        assert set(found["tensors"]) == set(state)
        assert all(torch.equal(found["tensors"][name], state[name]) for name in state)


# -- the value -----------------------------------------------------------------------------------


def test_indexing_gives_copies():
    state = random_state([1])
    name = next(iter(state))
    state[name].zero_()
    assert state == random_state([1])


def test_a_state_cannot_be_assigned_to():
    state = random_state([1])
    with pytest.raises(TypeError):
        state["blocks.0.att_kv"] = torch.zeros(1)  # type: ignore[index]
    with pytest.raises(AttributeError):
        state.n_tokens = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        state.other = 3  # type: ignore[attr-defined]


def test_a_view_keeps_no_larger_storage_alive():
    big = {spec.name: torch.randn(100, *spec.shape)[7] for spec in LAYOUT.specs}
    state = RWKVState(LAYOUT, big, Derivation("model"))
    assert state.nbytes == LAYOUT.nbytes
    assert len(pickle.dumps(state)) < 1.2 * LAYOUT.nbytes + 2000
    turned = {
        name: tensor.transpose(-1, -2) if tensor.ndim == 3 else tensor
        for name, tensor in big.items()
    }
    straight = RWKVState(LAYOUT, turned, Derivation("model"))
    assert all(straight.shared(name).is_contiguous() for name in straight)


def test_equal_states_have_one_hash_and_others_differ():
    state = random_state([1])
    assert state == random_state([1])
    assert hash(state) == hash(random_state([1]))
    assert state != random_state([2])
    assert state != "state"
    nudged = {name: state[name] + 1e-7 for name in state}
    assert state != RWKVState(LAYOUT, nudged, state.derivation)
    assert copy.copy(state) == state == copy.deepcopy(state) == pickle.loads(pickle.dumps(state))


def test_repr_shows_no_numbers():
    assert "tensor" not in repr(random_state([1]))
    assert "n_tokens=1" in repr(random_state([1]))


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_tensors_that_do_not_fit_are_named(change):
    tensors = {spec.name: torch.zeros(spec.shape) for spec in LAYOUT.specs}
    name = "blocks.1.att_kv"
    match change:
        case "missing":
            del tensors[name]
        case "extra":
            name = "blocks.9.att_kv"
            tensors[name] = torch.zeros(1)
        case "shape":
            tensors[name] = torch.zeros(3)
        case "dtype":
            tensors[name] = tensors[name].half()
    with pytest.raises(StateMismatch, match=name):
        RWKVState(LAYOUT, tensors, Derivation("model"))


def test_an_unknown_tensor_is_a_key_error_that_names_the_first():
    with pytest.raises(KeyError, match=r"blocks\.0\.att_x_prev"):
        random_state([1])["att_kv"]


def test_rwkv_4_starts_its_log_scale_far_below_zero():
    state = zero_state(LAYOUTS[0], "model")
    assert float(state["blocks.0.att_pp"].max()) == pytest.approx(-1e30)
    assert state.n_tokens == 0


# -- files ---------------------------------------------------------------------------------------


def test_a_saved_state_comes_back_and_is_its_owners_alone(tmp_path):
    state, path = random_state([1]), tmp_path / "a.safetensors"
    state.save(path)
    assert RWKVState.load(path) == state
    assert RWKVState.load(str(path), fingerprint="model") == state
    assert os.name == "nt" or stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StateMismatch):
        RWKVState.load(path, fingerprint="other")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    random_state([1]).save(path)

    def fail(_: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no room"):
        random_state([2]).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert RWKVState.load(path) == random_state([1])


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        RWKVState.load(tmp_path / "none")


# -- derivations ---------------------------------------------------------------------------------


@given(TOKENS, TOKENS)
def test_reading_in_turns_is_reading_in_one_go(first, second):
    start = Derivation("model")
    assert start.read(first).read(second) == start.read(first + second)
    assert start.read(first + second).n_tokens == len(first) + len(second)


@given(TOKENS, TOKENS)
def test_other_tokens_give_another_derivation(first, second):
    same = Derivation("model").read(first) == Derivation("model").read(second)
    assert same == (first == second)


@given(TOKENS, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_reference_depends_on_the_stores_secret(tokens, key, other):
    derivation = Derivation("model").read(tokens)
    ref = reference(derivation, key)
    assert is_reference(ref)
    assert json.loads(json.dumps(ref)) == ref
    assert (reference(derivation, other) == ref) == (key == other)


@given(TOKENS, st.text(), st.text())
def test_an_operation_gives_a_root_of_its_own(tokens, one, other):
    derivation = Derivation("model").read(tokens)
    assert (derivation.rooted(one) == derivation.rooted(other)) == (one == other)
    assert derivation.rooted(one) != derivation
    assert derivation.rooted(one).n_tokens == derivation.n_tokens


def test_models_and_roots_give_other_references():
    key = bytes(32)
    refs = {
        reference(each, key)
        for each in (
            Derivation("a"),
            Derivation("b"),
            Derivation("a", "root"),
            Derivation("a", n_tokens=1),
        )
    }
    assert len(refs) == 4


def test_what_is_no_reference_is_none():
    for value in (
        None,
        7,
        "",
        "rwkv1-" + "A" * 64,
        "rwkv1-" + "a" * 64 + "\n",
        "rwkv2-" + "a" * 64,
    ):
        assert not is_reference(value)


# -- fingerprints --------------------------------------------------------------------------------


def test_a_fingerprint_says_which_part_differs():
    mine = Fingerprint("v7-a", "fp32", "world", "chat")
    assert Fingerprint.parse(str(mine)) == mine
    mine.require(str(mine))
    with pytest.raises(StateMismatch, match="tokenizer"):
        mine.require("v7-a/fp32/other/chat")
    mine.require("v7-a/fp32/other/chat", parts=("weights", "compute"))
    for text in ("", "a/b", "a/b//d", "a/b/c/d/e"):
        with pytest.raises(StateMismatch, match="fingerprint"):
            Fingerprint.parse(text)


# -- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_comes_back_from_its_text(layout):
    assert StateLayout.from_json(layout.to_json()) == layout


def test_impossible_layouts_are_refused():
    for wrong in (
        lambda: StateLayout.of(3, n_layer=1, n_embd=8),  # type: ignore[arg-type]
        lambda: StateLayout.of(7, n_layer=0, n_embd=8),
        lambda: StateLayout.of(7, n_layer=1, n_embd=8, shift_dtype="int8"),
        lambda: StateLayout(7, 2, 8, 1, 8, ("fp32",)),
    ):
        with pytest.raises(ValueError):
            wrong()
