"""Tokenizers: lossless, unforgeable, and whole characters in a stream."""

from __future__ import annotations

import json
import pickle
import threading
import time
from pathlib import Path

import pyrwkv_tokenizer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.tokenizer import (
    JsonTokenizer,
    StreamDecoder,
    WorldTokenizer,
    _json,
    load_tokenizer,
    well_formed,
)
from langchain_rwkv_state.tokenizer import Tokenizer as TokenizerPort
from tests.helpers.checkpoints import DEFAULT_VOCAB, tiny_tokenizer, write_tokenizer

WORLD = WorldTokenizer()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(write_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer.json"))


@pytest.fixture(scope="module", params=["world", "json"])
def tokenizer(request: pytest.FixtureRequest, tiny: JsonTokenizer) -> TokenizerPort:
    return WORLD if request.param == "world" else tiny


def save(tokenizer: Tokenizer, path: Path) -> Path:
    tokenizer.save(str(path))
    return path


@given(text=st.text())
def test_what_is_encoded_comes_back(tokenizer: TokenizerPort, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(text=st.text(st.sampled_from("<|endofx> \n\0\r")))
def test_no_text_encodes_to_an_end_of_text(tokenizer: TokenizerPort, text: str) -> None:
    for spelled in (text, "<|endoftext|>", f"a<|endoftext|>{text}", f"{text}\n<|endoftext|>"):
        ids = tokenizer.encode(spelled)
        assert not tokenizer.eos_ids & set(ids)
        assert tokenizer.decode(ids) == spelled


def test_special_ids_have_no_text(tokenizer: TokenizerPort) -> None:
    assert tokenizer.bos_id == 0
    assert tokenizer.eos_ids == {0}
    assert tokenizer.decode_bytes([0, *tokenizer.encode("x"), 0]) == b"x"


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: TokenizerPort) -> None:
    assert tokenizer.decode([tokenizer.vocab_size, 1 << 20]) == ""


def test_a_negative_id_is_refused(tokenizer: TokenizerPort) -> None:
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])


def test_ids_that_are_not_utf8_decode_with_replacement() -> None:
    assert WORLD.decode_bytes([200]) == b"\xc7"
    assert WORLD.decode([200, *WORLD.encode("x")]) == "�x"


def test_lone_surrogates_become_the_replacement_character(tokenizer: TokenizerPort) -> None:
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a�b")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


@given(text=st.text(st.characters(exclude_categories=[])))
def test_well_formed_text_is_utf8_and_stays_as_it_is(text: str) -> None:
    once = well_formed(text)
    once.encode()
    assert well_formed(once) == once


def test_world_knows_the_published_ids() -> None:
    assert WORLD.encode("\n\n") == [261]
    assert WORLD.encode("\n\n\n") == [3328]
    assert WORLD.encode("User: Hi") == [24281, 59, 3880]


def test_identities_differ_and_are_short_hex(tiny: JsonTokenizer) -> None:
    assert WORLD.identity != tiny.identity
    assert all(len(t.identity) == 16 and int(t.identity, 16) for t in (WORLD, tiny))


def test_both_are_what_the_port_asks_for(tiny: JsonTokenizer) -> None:
    assert isinstance(WORLD, TokenizerPort)
    assert isinstance(tiny, TokenizerPort)


class TestJsonTokenizer:
    """What a tokenizer.json may hold."""

    def test_a_long_text_is_encoded_as_a_short_one_while_others_run(self, tiny, monkeypatch):
        text = "The cat sat on the mat, and 1, 2. " * 20_000
        beats: list[float] = []
        done = threading.Event()

        def beat():
            while not done.wait(0.001):
                beats.append(time.perf_counter())

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            begun = time.perf_counter()
            found = tiny.encode(text)
            ended = time.perf_counter()
        finally:
            done.set()
            thread.join()
        assert len([at for at in beats if begun < at < ended]) > 5
        monkeypatch.setattr(_json, "_LONG", len(text) + 1)
        assert tiny.encode(text) == found

    def test_an_end_of_text_not_marked_as_special_is_special_nonetheless(self, tmp_path):
        path = write_tokenizer(tmp_path / "tokenizer.json")
        raw = json.loads(path.read_text())
        for token in raw["added_tokens"]:
            token["special"] = False
        path.write_text(json.dumps(raw))
        tokenizer = JsonTokenizer(path)
        assert tokenizer.eos_ids == {0}
        assert 0 not in tokenizer.encode("<|endoftext|>")

    def test_added_tokens_of_plain_text_are_used_and_decoded(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([AddedToken("   ", normalized=False), AddedToken("é!")])
        found = JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))
        ids = found.encode("a   bé!")
        assert tokenizer.token_to_id("   ") in ids
        assert found.decode(ids) == "a   bé!"

    def test_truncation_padding_and_added_borders_are_switched_off(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=4)
        found = JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))
        assert found.decode(found.encode("a long text, and more")) == "a long text, and more"
        assert len(found.encode("a")) == 1

    def test_a_composing_normalizer_as_of_the_20b_tokenizer_is_accepted(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.normalizer = normalizers.NFC()
        found = JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))
        assert found.decode(found.encode("e\u0301")) == "é"

    def test_no_end_of_text_means_no_beginning(self, tmp_path):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {character: place for place, character in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found = JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))
        assert found.bos_id is None
        assert found.eos_ids == frozenset()
        assert found.vocab_size == 256

    def test_word_level_is_refused(self, tmp_path):
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        with pytest.raises(ModelLoadError, match=r"WordLevel.*not byte-level"):
            JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))

    def test_byte_fallback_is_refused(self, tmp_path):
        tokenizer = Tokenizer(models.BPE({"▁": 0, "<0x41>": 1}, [], byte_fallback=True))
        tokenizer.decoder = decoders.ByteFallback()
        with pytest.raises(ModelLoadError, match="not byte-level"):
            JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))

    def test_an_alphabet_with_holes_is_refused(self, tmp_path):
        tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate("abc")}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        with pytest.raises(ModelLoadError, match="does not give back"):
            JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))

    def test_a_blank_put_before_each_text_is_refused(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        with pytest.raises(ModelLoadError, match="add_prefix_space=False"):
            JsonTokenizer(save(tokenizer, tmp_path / "tokenizer.json"))

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "No"}}', "\0\1"])
    def test_a_foreign_file_is_refused(self, tmp_path, content):
        path = tmp_path / "tokenizer.json"
        path.write_text(content)
        with pytest.raises(ModelLoadError, match=r"not a tokenizer\.json"):
            JsonTokenizer(path)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(ModelLoadError, match="No such file"):
            JsonTokenizer(tmp_path / "nowhere.json")


def _vocabulary(path, *lines):
    """Writes the usual vocabulary and more lines behind it."""
    usual = Path(pyrwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt").read_bytes()
    path.write_bytes(usual + "".join(f"{line}\n" for line in lines).encode())
    return path


class TestLoadTokenizer:
    """Which tokenizer a model gets."""

    @pytest.mark.parametrize("vocab_size", [65_530, 65_536])
    def test_a_world_sized_model_gets_world(self, tmp_path, vocab_size):
        found = load_tokenizer(None, model_path=tmp_path / "m.pth", vocab_size=vocab_size)
        assert isinstance(found, WorldTokenizer)

    def test_the_file_beside_the_model_comes_first(self, tmp_path):
        write_tokenizer(tmp_path / "tokenizer.json")
        found = load_tokenizer(None, model_path=tmp_path / "m.pth", vocab_size=65_536)
        assert isinstance(found, JsonTokenizer)

    def test_a_models_folder_brings_its_own_or_world(self, tmp_path):
        folder = tmp_path / "m"
        folder.mkdir()
        found = load_tokenizer(None, model_path=folder, vocab_size=65_536)
        assert isinstance(found, WorldTokenizer)
        write_tokenizer(tmp_path / "tokenizer.json")  # beside the folder, which is none of its own
        found = load_tokenizer(None, model_path=folder, vocab_size=65_536)
        assert isinstance(found, WorldTokenizer)
        write_tokenizer(folder / "tokenizer.json")
        found = load_tokenizer(None, model_path=folder, vocab_size=65_536)
        assert isinstance(found, JsonTokenizer)

    def test_a_path_is_a_path_whatever_it_is_called(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        _vocabulary(tmp_path / "world", "65530 '<|im_start|>' 12")
        for path in (Path("world"), "./world"):
            found = load_tokenizer(path, model_path=None, vocab_size=65_536)
            assert found.encode("<|im_start|>") == [65_530]
        assert load_tokenizer("world", model_path=None, vocab_size=65_536).vocab_size == 65_530

    @pytest.mark.parametrize("vocab_size", [50_277, 50_254])
    def test_a_pile_sized_model_asks_for_the_20b_tokenizer(self, tmp_path, vocab_size):
        with pytest.raises(ModelLoadError, match=r"20B_tokenizer\.json"):
            load_tokenizer(None, model_path=tmp_path / "m.pth", vocab_size=vocab_size)

    def test_another_size_asks_for_a_tokenizer(self, tmp_path):
        with pytest.raises(ModelLoadError, match="1000 tokens"):
            load_tokenizer(None, model_path=tmp_path / "m.pth", vocab_size=1000)

    def test_names_paths_folders_and_objects_are_taken(self, tmp_path):
        path = write_tokenizer(tmp_path / "tokenizer.json")
        for given_tokenizer in (path, str(path), tmp_path):
            found = load_tokenizer(given_tokenizer, model_path=None, vocab_size=DEFAULT_VOCAB)
            assert isinstance(found, JsonTokenizer)
        for name in ("world", "World", "rwkv_vocab_v20230424"):
            found = load_tokenizer(name, model_path=None, vocab_size=65_536)
            assert isinstance(found, WorldTokenizer)
        assert load_tokenizer(found, model_path=None, vocab_size=65_536) is found

    def test_a_vocabulary_with_added_tokens_is_read_whatever_its_name(self, tmp_path):
        for name in ("rwkv_vocab_v20230424.txt", "own.vocab"):
            path = _vocabulary(tmp_path / name, "65530 '<|im_start|>' 12", "65531 'xcaf\\xe9' 6")
            found = load_tokenizer(str(path), model_path=None, vocab_size=65_536)
            assert isinstance(found, WorldTokenizer)
            assert found.encode("<|im_start|>xcaf\u00e9!") == [65_530, 65_531, *WORLD.encode("!")]
            assert found.decode([65_530, 65_531]) == "<|im_start|>xcaf\u00e9"
            assert found.vocab_size == 65_532
            assert found.identity != WORLD.identity
            assert pickle.loads(pickle.dumps(found)).encode("<|im_start|>") == [65_530]

    def test_the_usual_vocabulary_in_a_file_is_the_usual_one(self, tmp_path):
        found = load_tokenizer(_vocabulary(tmp_path / "v.txt"), model_path=None, vocab_size=65_536)
        assert (found.identity, found.vocab_size) == (WORLD.identity, WORLD.vocab_size)

    def test_a_vocabulary_that_changed_is_read_again_and_changes_no_tokenizer(self, tmp_path):
        path = _vocabulary(tmp_path / "v.txt", "65530 '<a>' 3")
        before = WorldTokenizer(path)
        _vocabulary(path, "65530 '<bb>' 4")
        assert WorldTokenizer(path).encode("<bb>") == [65_530]
        assert before.encode("<a>") == [65_530]

    @pytest.mark.parametrize("name", ["rwkv_vocab_v20230424.txt", "tokenizer.json", "world.txt"])
    def test_a_path_that_is_not_there_is_an_error(self, tmp_path, name):
        for path in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ModelLoadError, match=f"{name}.*No such file"):
                load_tokenizer(path, model_path=None, vocab_size=65_536)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["65530 '<|im_start|>' 11"], "neither a tokenizer.json nor .*im_start"),
            (["65530 __import__('os') 2"], "neither a tokenizer.json nor"),
            (["no number 'a' 1"], "neither a tokenizer.json nor"),
            (["65530 '' 0"], "neither a tokenizer.json nor"),
            (["0 '<end>' 5"], "a text for id 0, where ids begin at 1"),
            (["-1 '<end>' 5"], "a text for id -1"),
            (["65530 'Hello' 5"], "one text under two ids"),
            (["1 '<no zero byte>' 14"], "lacks the byte 0x00"),
        ],
    )
    def test_a_vocabulary_that_cannot_be_used_is_named(self, tmp_path, lines, message):
        path = _vocabulary(tmp_path / "v.txt", *lines)
        with pytest.raises(ModelLoadError, match=message):
            load_tokenizer(path, model_path=None, vocab_size=65_536)

    def test_a_tokenizer_too_large_for_the_model_is_refused_with_both_sizes(self):
        with pytest.raises(ModelLoadError, match=r"65530.*512"):
            load_tokenizer("world", model_path=None, vocab_size=512)


class TestStreamDecoder:
    """Pieces of bytes to pieces of text."""

    @given(pieces=st.lists(st.binary(max_size=5)))
    def test_joined_pieces_are_the_whole_decoded(self, pieces):
        decoder = StreamDecoder()
        text = "".join(map(decoder.push, pieces)) + decoder.flush()
        assert text == b"".join(pieces).decode(errors="replace")

    @given(text=st.text(), size=st.integers(1, 4))
    def test_no_piece_holds_half_a_character(self, text, size):
        decoder, whole = StreamDecoder(), text.encode()
        pieces = [decoder.push(whole[at : at + size]) for at in range(0, len(whole), size)]
        assert "".join(pieces) == text
        assert decoder.pending == b""
        assert decoder.flush() == ""

    @settings(max_examples=200)
    @given(ids=st.lists(st.integers(0, 65_535), max_size=20))
    def test_any_ids_decode_piece_by_piece_as_whole(self, ids):
        decoder = StreamDecoder()
        text = "".join(decoder.push(WORLD.decode_bytes([token])) for token in ids)
        assert text + decoder.flush() == WORLD.decode(ids)

    def test_an_incomplete_character_is_pending(self):
        decoder = StreamDecoder()
        assert decoder.push("€".encode()[:2]) == ""
        assert decoder.pending == "€".encode()[:2]
        assert decoder.flush() == "�"
