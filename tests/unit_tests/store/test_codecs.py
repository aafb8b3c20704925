"""A store's codec: a property of the whole store, with references of its own where it loses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.state import CODECS, LOSSY, CodecName, decode, lossy, reference
from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore
from langchain_rwkv_state.testing import StateStoreContract
from tests.helpers.mutations import mutate_files
from tests.helpers.states import random_state


class TestZstdStore(StateStoreContract):
    """A lossless codec changes nothing that the contract says."""

    opened = 0
    share_of_bytes = 0.89

    def open_store(self, **settings):
        self.opened += 1
        return DiskStateStore(self.tmp_path / str(self.opened), **settings, codec="zstd")


@pytest.mark.parametrize("codec", CODECS)
def test_a_state_comes_back_as_its_codec_keeps_it(tmp_path, codec):
    exact = random_state([1, 2])
    with DiskStateStore(tmp_path, codec=codec) as store:
        assert store.codec == codec
        ref = store.stage(exact)
        assert store.get(ref) == lossy(exact, codec)
        store.commit("bob", ref, None)
        put = store.put(random_state([3]))
    with DiskStateStore(tmp_path) as store:
        assert store.codec == codec
        assert store.head("bob") == ref
        assert store.get(ref) == lossy(exact, codec)
        assert store.get(put) == lossy(random_state([3]), codec)
        assert store.check().sound
    files = [decode(each.read_bytes()) for each in tmp_path.glob("??/*.safetensors")]
    assert [each.codec for each in files] == [codec] * 2


@pytest.mark.parametrize("codec", sorted(LOSSY))
def test_a_lossy_state_has_a_reference_of_its_own(codec):
    with MemoryStateStore(codec=codec) as store:
        exact = random_state([1])
        ref = store.put(exact)
        assert ref == store.put(exact) == store.stage(exact)
        assert ref != reference(exact.derivation, store._key)
        assert store.get(ref).n_tokens == 1


@pytest.mark.parametrize("codec", sorted(LOSSY))
def test_a_state_that_comes_from_the_store_goes_back_as_it_is(codec):
    with MemoryStateStore(codec=codec) as store:
        ref = store.put(random_state([1]))
        kept = store.get(ref)
        assert store.put(kept) == store.stage(kept) == ref
        on = kept.advanced(dict(kept), [5])
        after = store.stage(on, parent=ref)
        assert after != ref
        assert store.descends(after, ref)


def test_a_lossy_store_is_lossy_from_its_beginning(tmp_path):
    pairs: list[tuple[CodecName, CodecName]] = [
        *(("exact", "int8"), ("int8", "exact"), ("int8", "int4"), ("zstd", "fp16"))
    ]
    for first, then in pairs:
        path = tmp_path / f"{first}-{then}"
        DiskStateStore(path, codec=first).close()
        with pytest.raises(StoreError, match=f"{first!r}.*{then!r}"):
            DiskStateStore(path, codec=then)
        with DiskStateStore(path) as store:
            assert store.codec == first


def test_lossless_codecs_may_follow_one_another(tmp_path):
    refs: list[str] = []
    codecs: list[CodecName] = ["exact", "zstd", "exact"]
    for number, codec in enumerate(codecs):
        with DiskStateStore(tmp_path, codec=codec) as store:
            refs.append(store.put(random_state([number])))
            assert [store.get(ref) for ref in refs] == [
                random_state([n]) for n in range(number + 1)
            ]


def test_no_token_ids_lead_to_a_lossy_state(tmp_path):
    with pytest.raises(ValueError, match="log='none'"):
        DiskStateStore(tmp_path / "a", codec="int8", log="tokens")
    assert not (tmp_path / "a").exists()
    DiskStateStore(tmp_path / "b", codec="int8").close()
    with pytest.raises(ValueError, match="log='none'"):
        DiskStateStore(tmp_path / "b", log="tokens")


def test_a_codec_of_a_later_release_is_told_to_upgrade(tmp_path, monkeypatch):
    DiskStateStore(tmp_path, codec="int4").close()
    monkeypatch.setattr("langchain_rwkv_state.store.resources.CODECS", ("exact", "zstd"))
    with pytest.raises(StoreError, match=r"'int4'.*upgrade"):
        DiskStateStore(tmp_path)


def test_another_process_finds_the_codec(tmp_path):
    with DiskStateStore(tmp_path, codec="int8") as store:
        ref = store.put(random_state([1]))
    code = (
        "import json, sys\n"
        "from langchain_rwkv_state.store import DiskStateStore\n"
        "store = DiskStateStore(sys.argv[1])\n"
        "print(json.dumps([store.codec, float(store.get(sys.argv[2])['blocks.0.att_kv'].sum())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), ref],
        capture_output=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    kept = lossy(random_state([1]), "int8")
    assert json.loads(done.stdout) == ["int8", pytest.approx(float(kept["blocks.0.att_kv"].sum()))]


@pytest.mark.parametrize("codec", ["zstd", "fp16", "int8", "int4"])
def test_mutated_files_are_noticed(tmp_path, codec):
    found = mutate_files(tmp_path / "store", 300, codec=codec)
    assert found == {"changed": 300, "noticed": 300, "run": 0, "new_sessions": 0}


@pytest.mark.parametrize("codec", sorted(LOSSY))
def test_a_conversation_goes_on_in_a_lossy_store(make_chat, codec):
    with MemoryStateStore(codec=codec) as store:
        session = make_chat(7, store=store, max_tokens=4).with_session("bob")
        heads: list[str] = []
        for text in ("Hello.", "How are you?", "Fine."):
            session.invoke(text)
            heads.append(str(store.head("bob")))
        assert len(set(heads)) == 3
        assert store.descends(heads[2], heads[0])
        store.rewind("bob")
        assert store.head("bob") == heads[1]
