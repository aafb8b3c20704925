"""Whose a state is, in words: the built-in model by name, others by a few digits."""

import pytest

from langchain_rwkv_state.demo import WEIGHTS
from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.state import encode
from langchain_rwkv_state.state.header import START_BYTES, Named, model_named
from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.store.records import model_words
from tests.helpers.states import random_state


def test_the_built_in_model_is_known_by_name():
    runtime = load_runtime("demo")
    named = model_named(encode(runtime.zero_state())[:START_BYTES])
    runtime.close()
    assert named.fingerprint.partition("/")[0] == WEIGHTS
    assert model_words(named) == "RWKV-7 6x128 demo"


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        ("rwkv4-0123456789abcdef/fp32/-/-", "RWKV-4 24x2048 01234567"),
        (
            "rwkv7-0123456789abcdef+clamp(-8,-0.1)/fp32/a/b",
            "RWKV-7 24x2048 01234567+clamp(-8,-0.1)",
        ),
        (f"{WEIGHTS}+clamp(-8,-0.1)/int8/a/b", "RWKV-7 24x2048 demo+clamp(-8,-0.1)"),
        ("some model", "RWKV-7 24x2048 some mod"),
    ],
)
def test_another_model_is_told_apart(fingerprint, words):
    version = 4 if "rwkv4" in fingerprint else 7
    assert model_words(Named(fingerprint, version, 24, 2048)) == words


@pytest.mark.parametrize("start", [b"", b"\x00" * 8, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_state_names_no_model(start):
    with pytest.raises(StateCorrupt):
        model_named(start)


def test_a_session_whose_file_is_damaged_is_listed_with_its_model(tmp_path):
    with DiskStateStore(tmp_path / "store") as store:
        store.commit("bob", store.stage(random_state([1])), None)
        (file,) = store.path.glob("??/*.safetensors")
        for change in (lambda: file.write_bytes(b"no state"), file.unlink):
            change()
            info = store.session("bob")
            assert info is not None
            assert (info.n_turns, info.model) == (1, "RWKV-7 2x64 model")
