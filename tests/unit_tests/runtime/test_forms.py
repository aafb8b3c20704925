"""Every form of a checkpoint is the same model: the same logits, and where bits agree the same
fingerprint; and whatever is no whole model is an error that says what it is and what to do."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.gguf_file import convert
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime import load_runtime, model_key
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_contents, read_tensors
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint
from tests.helpers.hugging_face import fla_tensors, write_hugging_face, write_shards

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the extra gguf is not installed"
)
Tensors = dict[str, torch.Tensor]
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
GGUF_KINDS = {"fp64": "f64", "fp32": "f32", "fp16": "f16", "bf16": "bf16"}


def model(version: float = 7, dtype: torch.dtype = torch.float32, **options: Any) -> Tensors:
    sizes = {"n_layer": 2, "n_embd": 128, "head_size": 64, **options}
    return random_checkpoint(version, dtype=dtype, **sizes)


def logits_of(path: Path) -> torch.Tensor:
    runtime = load_runtime(path, "cpu fp32" if "6" in path.name else "auto")
    try:
        return runtime.forward([5, 6, 7, 100], runtime.zero_state())[0]
    finally:
        runtime.close()


def weights_of(path: Path) -> str:
    return Checkpoint.of(read_tensors(path, mapped=True), path).weights


def _pth(at: Path, tensors: Tensors) -> Path:
    return write_checkpoint(at / "m.pth", tensors=tensors)


def _prefixed(at: Path, tensors: Tensors) -> Path:
    named = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": named}, at / "m.pth")
    return at / "m.pth"


def _inside_model(at: Path, tensors: Tensors) -> Path:
    named = {f"_forward_module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"model": named}, at / "m.pth", _use_new_zipfile_serialization=False)
    return at / "m.pth"


def _st(at: Path, tensors: Tensors) -> Path:
    safetensors.torch.save_file(tensors, at / "m.st")
    return at / "m.st"


def _pth_under_another_name(at: Path, tensors: Tensors) -> Path:
    return _pth(at, tensors).rename(at / "m.safetensors")


def _shards(at: Path, tensors: Tensors) -> Path:
    return write_shards(at / "m", tensors, 3)


def _shards_without_index(at: Path, tensors: Tensors) -> Path:
    folder = write_shards(at / "m", tensors, 3)
    (folder / "model.safetensors.index.json").unlink()
    return folder


def _pth_in_a_folder(at: Path, tensors: Tensors) -> Path:
    (at / "m").mkdir()
    (at / "m" / "README.md").write_text("# a model")
    _pth(at / "m", tensors)
    return at / "m"


def _fla(at: Path, tensors: Tensors) -> Path:
    return write_hugging_face(at / "m", tensors)


def _fla_shards(at: Path, tensors: Tensors) -> Path:
    return write_hugging_face(at / "m", tensors, shards=4)


def _fla_bin(at: Path, tensors: Tensors) -> Path:
    folder = write_hugging_face(at / "m", tensors)
    (folder / "model.safetensors").unlink()
    torch.save(fla_tensors(tensors), folder / "pytorch_model.bin")
    torch.save({"args": torch.ones(1)}, folder / "training_args.bin")
    return folder


def _fla_file(at: Path, tensors: Tensors) -> Path:
    return write_hugging_face(at / "m", tensors) / "model.safetensors"


FORMS: dict[str, Callable[[Path, Tensors], Path]] = {
    form.__name__.strip("_"): form
    for form in (
        _prefixed,
        _inside_model,
        _st,
        _pth_under_another_name,
        _shards,
        _shards_without_index,
        _pth_in_a_folder,
        _fla,
        _fla_shards,
        _fla_bin,
        _fla_file,
    )
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_logits_and_the_fingerprint_of_the_plain_pth(
    tmp_path: Path, form: str, dtype: str
) -> None:
    tensors = model(dtype=DTYPES[dtype])
    (tmp_path / "plain").mkdir()
    plain = _pth(tmp_path / "plain", tensors)
    path = FORMS[form](tmp_path, dict(tensors))
    assert torch.equal(logits_of(path), logits_of(plain))
    assert weights_of(path) == weights_of(plain)


@needs_gguf
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("version", "rescale"), [(6, 0), (6, 1), (7, 0)])
def test_a_gguf_is_bit_for_bit_the_pth_that_it_was_made_from(
    tmp_path: Path, version: int, dtype: str, rescale: int
) -> None:
    plain = write_checkpoint(tmp_path / f"m{version}.pth", tensors=model(version, DTYPES[dtype]))
    path = tmp_path / f"g{version}.gguf"
    convert(str(plain), str(path), GGUF_KINDS[dtype], rescale=rescale)
    expected = read_tensors(plain)
    if version == 7:
        expected = {n: t for n, t in expected.items() if not n.startswith("blocks.0.att.v")} | {
            "blocks.0.att.value.weight": expected["blocks.0.att.value.weight"]
        }
    found = read_tensors(path)
    lost = 6e-8 if rescale and dtype == "fp16" else 0  # the last bits of the smallest numbers
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.allclose(found[name], tensor, rtol=0, atol=lost), name
    assert torch.allclose(logits_of(path), logits_of(plain), rtol=0, atol=1000 * lost)
    assert lost or weights_of(path) == weights_of(plain)


@needs_gguf
@pytest.mark.parametrize("version", [6, 7])
def test_a_quantised_gguf_is_dequantised_with_one_line(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain = write_checkpoint(tmp_path / f"m{version}.pth", tensors=model(version, torch.float16))
    path = tmp_path / f"g{version}.gguf"
    convert(str(plain), str(path), "q8")
    with caplog.at_level(logging.WARNING):
        found, expected = read_tensors(path), read_tensors(plain)
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert re.search(r"quantised \(Q8_0\): it is dequantised to fp16, which takes 1 MB", line)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    for name, tensor in found.items():
        worst = float(expected[name].abs().max())
        assert (tensor - expected[name]).abs().max() <= worst / 127, name
    assert float((logits_of(path) - logits_of(plain)).abs().max()) < 0.2
    caplog.clear()
    assert "Q8_0 dequantised to fp16" in read_contents(path, mapped=True).form
    assert not caplog.records


@needs_gguf
def test_the_gguf_of_split_files_is_taken_whole(tmp_path: Path) -> None:
    import gguf

    plain = write_checkpoint(tmp_path / "m.pth", tensors=model(dtype=torch.float16))
    convert(str(plain), str(tmp_path / "whole.gguf"), "f16")
    reader = gguf.GGUFReader(tmp_path / "whole.gguf")
    folder = tmp_path / "split"
    folder.mkdir()
    for number in range(2):
        file = folder / f"m-{number + 1:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(file, "rwkv7")
        if not number:
            writer.add_wkv_head_size(64)
        writer.add_uint16("split.no", number)
        for tensor in reader.tensors[number::2]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert weights_of(folder) == weights_of(plain)
    with pytest.raises(ModelLoadError, match=r"shard 2 of 2: pass the folder"):
        weights_of(folder / "m-00002-of-00002.gguf")


@needs_gguf
def test_numbers_that_16_bits_do_not_hold_stay_in_fp32(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "m.pth", tensors=model())
    convert(str(plain), str(tmp_path / "m.gguf"), "f16")
    found, expected = read_tensors(tmp_path / "m.gguf"), read_tensors(plain)
    assert found["emb.weight"].dtype == torch.float16
    for name in ("blocks.1.att.w1", "blocks.1.att.x_r", "ln_out.bias"):
        assert torch.equal(found[name], expected[name])
    difference = logits_of(tmp_path / "m.gguf") - logits_of(plain)
    assert 0 < float(difference.abs().max()) < 0.01


def test_the_forms_are_said(tmp_path: Path) -> None:
    tensors = model()
    said = {}
    for name, form in FORMS.items():
        (tmp_path / name).mkdir()
        said[name] = read_contents(form(tmp_path / name, dict(tensors)), mapped=True).form
    assert said == {
        "prefixed": "pth, inside 'state_dict', prefix 'module._orig_mod.' taken off, "
        "BlinkDL's names",
        "inside_model": "pth, inside 'model', prefix '_forward_module.' taken off, BlinkDL's names",
        "st": "safetensors, BlinkDL's names",
        "pth_under_another_name": "pth, BlinkDL's names",
        "shards": "safetensors, 3 shards, BlinkDL's names",
        "shards_without_index": "safetensors, 3 shards, BlinkDL's names",
        "pth_in_a_folder": "pth, BlinkDL's names",
        "fla": "safetensors, a Hugging Face model in fla's names",
        "fla_shards": "safetensors, 4 shards, a Hugging Face model in fla's names",
        "fla_bin": "pth, a Hugging Face model in fla's names",
        "fla_file": "safetensors, a Hugging Face model in fla's names",
    }


def test_a_folder_and_its_only_file_are_one_loaded_model(tmp_path: Path) -> None:
    folder = _pth_in_a_folder(tmp_path, model())
    key = model_key(folder)
    assert key == model_key(folder / "m.pth")
    _pth(folder, model(seed=1)).touch()
    assert model_key(folder) != key


def test_a_pair_of_one_name_is_one_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", tensors=model())
    write_checkpoint(tmp_path / "m.pth", tensors=model(seed=1))
    assert weights_of(tmp_path) == weights_of(tmp_path / "m.safetensors")


def test_fla_models_of_the_first_version_and_with_one_embedding_are_read(tmp_path: Path) -> None:
    tensors = model()
    tensors["head.weight"] = tensors["emb.weight"]
    theirs = fla_tensors(tensors)
    del theirs["lm_head.weight"]
    for layer in range(2):
        names = [f"model.layers.{layer}.attn.x_{letter}" for letter in "rwkvag"]
        theirs[f"model.layers.{layer}.attn.x_x"] = torch.stack(
            [theirs.pop(name).flatten() for name in names]
        )
    folder = write_shards(tmp_path / "m", theirs, 1)
    (folder / "config.json").write_text('{"model_type": "rwkv7", "tie_word_embeddings": true}')
    assert weights_of(folder) == Checkpoint.of(tensors, folder).weights


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attn": {"layers": [1]}}, "has layers of attention"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06 with heads of 64"),
        ({"head_dim": 128}, "with heads of 128"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "rwkv8"}, "model_type is 'rwkv8'"),
        ({"norm_eps": "small"}, "holds no numbers"),
    ],
)
def test_a_hugging_face_variant_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = write_hugging_face(tmp_path / "m", model(), **config)
    with pytest.raises(ModelLoadError, match=message):
        read_tensors(folder)


def test_a_hybrid_without_settings_is_refused_by_its_names(tmp_path: Path) -> None:
    tensors = fla_tensors(model()) | {"model.layers.1.attn.q_proj.weight": torch.ones(4, 4)}
    with pytest.raises(ModelLoadError, match=r"q_proj.weight', which fla's RWKV-7 has not"):
        read_tensors(write_shards(tmp_path / "m", tensors, 1))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_settings_that_are_damaged_are_named(tmp_path: Path, content: str) -> None:
    folder = write_hugging_face(tmp_path / "m", model())
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json .*download it again"):
        read_tensors(folder)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("names", ["BlinkDL", "fla"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_alone_is_named(tmp_path: Path, number: int, names: str, indexed: bool) -> None:
    tensors = model(n_layer=3)
    folder = write_shards(tmp_path / "m", fla_tensors(tensors) if names == "fla" else tensors, 3)
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    path = folder / f"model-0000{number}-of-00003.safetensors"
    said = rf"shard {number} of 3: pass the folder {re.escape(str(folder))}"
    with pytest.raises(ModelLoadError, match=said):
        load_runtime(path)
    path = path.rename(folder / "first.safetensors")
    with pytest.raises(ModelLoadError, match=r"pass (the|their) folder"):
        load_runtime(path)


def test_a_first_shard_that_looks_like_an_rwkv_4_is_no_rwkv_4(tmp_path: Path) -> None:
    plain = ("key", "value", "receptance", "output")
    first = {f"blocks.0.att.{n}.weight" for n in plain} | {"emb.weight"}
    tensors = model()
    shards = [
        {n: t for n, t in tensors.items() if (n in first) is inside} for inside in (True, False)
    ]
    for number, shard in enumerate(shards):
        safetensors.torch.save_file(shard, tmp_path / f"m-0000{number + 1}-of-00002.safetensors")
    assert Checkpoint.of(read_tensors(tmp_path), tmp_path).version == "7"
    (tmp_path / "m-00001-of-00002.safetensors").rename(tmp_path / "RWKV-4.safetensors")
    with pytest.raises(ModelLoadError, match="If it is one shard of several, pass their folder"):
        load_runtime(tmp_path / "RWKV-4.safetensors")


def _without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _two_models(at: Path) -> Path:
    write_checkpoint(at / "a.pth", tensors=model())
    write_checkpoint(at / "b.pth", tensors=model())
    return at


def _half_named(folder: Path) -> Path:
    write_hugging_face(folder, random_checkpoint(7), shards=2)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    first = {name: file for name, file in places.items() if "00001" in file}
    index.write_text(json.dumps({"weight_map": first}))
    return folder


def _with_index(at: Path, content: object) -> Path:
    (at / "model.safetensors.index.json").write_text(json.dumps(content))
    return at


def _doubled(at: Path) -> Path:
    for number in (1, 2):
        write_checkpoint(at / f"m-0000{number}-of-00002.safetensors", tensors=model())
    return at


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda at: _without(_shards(at, model()), "model-00002-of-00003.safetensors"),
            r"lacks model-00002-of-00003.safetensors: 1 of the 3 shards",
        ),
        (
            lambda at: _without(
                _shards_without_index(at, model()), "model-00002-of-00003.safetensors"
            ),
            "lacks shard 2 of 3",
        ),
        (_doubled, "as another shard beside it does"),
        (_two_models, r"several checkpoints: name one file, such as a\.pth, b\.pth"),
        (lambda at: at, r"holds no \.pth, \.safetensors or \.gguf file"),
        (_half_named, "does not name model-00002-of-00002.safetensors, a shard that lies beside"),
        (lambda at: _with_index(at, []), "is no index of shards"),
        (lambda at: _with_index(at, {"weight_map": {}}), "names 'nothing' where"),
        (lambda at: _with_index(at, {"weight_map": {"a": "../m.pth"}}), "names '../m.pth' where"),
    ],
)
def test_a_folder_that_is_not_one_whole_model_is_named(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_runtime(make(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blocks.0.att.key.lora_A", "blocks.0.att.key.lora_B"], "a LoRA that was not merged"),
        (["base_model.model.layers.0.attn.r_proj.lora_A.weight"], "a LoRA that was not merged"),
        (["blocks.0.att.time_state", "blocks.1.att.time_state"], "tuned start states, no model"),
        (["blocks.0.att_x_prev", "blocks.0.att_kv"], "is a state, no model.*RWKVState.load"),
        (["emb.weight", "module.emb.weight"], "'emb.weight' twice"),
    ],
)
def test_what_stands_beside_models_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "m.pth")
    with pytest.raises(ModelLoadError, match=message):
        load_runtime(tmp_path / "m.pth")


def test_a_model_with_a_lora_beside_its_weights_is_refused(tmp_path: Path) -> None:
    tensors = model() | {"blocks.0.att.key.lora_A": torch.ones(8, 128)}
    with pytest.raises(ModelLoadError, match="merge it into the model"):
        load_runtime(_pth(tmp_path, tensors))


def test_our_own_state_file_is_told_from_a_model(tmp_path: Path) -> None:
    runtime = load_runtime(_pth(tmp_path, model()))
    runtime.forward([1], runtime.zero_state())[1].save(tmp_path / "bob.state")
    runtime.close()
    with pytest.raises(ModelLoadError, match="is a state, no model"):
        load_runtime(tmp_path / "bob.state")


@pytest.mark.parametrize("kind", ["llama", "rwkv"])
def test_another_architecture_of_hugging_face_is_named(tmp_path: Path, kind: str) -> None:
    folder = write_shards(tmp_path / "m", {"model.layers.0.mlp.weight": torch.ones(2, 2)}, 1)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelLoadError, match=f"Hugging Face model of the type '{kind}'"):
        load_runtime(folder)


@needs_gguf
@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("llama", {}, "of the architecture 'llama', no RWKV"),
        ("arwkv7", {}, "of the architecture 'arwkv7'"),
        ("rwkv7", {}, "does not say the size of its heads"),
        ("rwkv7", {"wkv.head_size": 64, "attention.layer_norm_epsilon": 1e-6}, "the epsilon 9.9"),
        ("rwkv7", {"wkv.head_size": 64}, "holds 'blk.0.odd.weight', which llama.cpp's rwkv7"),
    ],
)
def test_another_gguf_is_named(
    tmp_path: Path, architecture: str, change: dict[str, Any], message: str
) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    for key, value in change.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_tensor("blk.0.odd.weight", torch.ones(2, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=message):
        load_runtime(tmp_path / "m.gguf")


@needs_gguf
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_truncated_gguf_is_named(tmp_path: Path, share: float, mapped: bool) -> None:
    plain = _pth(tmp_path, model())
    convert(str(plain), str(tmp_path / "m.gguf"), "q8")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: max(5, int(len(whole) * share))])
    with pytest.raises(ModelLoadError, match=r"is not a whole GGUF file .*download it again"):
        read_tensors(tmp_path / "m.gguf", mapped=mapped)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x00\x00\x00\x03" + bytes(20), "of a big-endian machine"),
        (b"GGUF\x01\x00\x00\x00" + bytes(20), "of version 1"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "header ends too early"),
    ],
)
def test_a_gguf_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        read_tensors(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def a_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("gguf")
    plain = write_checkpoint(folder / "m.pth", tensors=model(n_layer=1, n_embd=64, vocab=64))
    convert(str(plain), str(folder / "m.gguf"), "q8")
    return (folder / "m.gguf").read_bytes()


@needs_gguf
@given(place=st.floats(0, 1), changed=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_gguf_with_a_changed_header_is_read_or_an_error_of_ours(
    a_gguf: bytes, tmp_path_factory: pytest.TempPathFactory, place: float, changed: int
) -> None:
    end = a_gguf.rindex(b"time_mix_ln.bias") + 60  # the last of its tensors' places
    at = round(place * end)
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(a_gguf[:at] + bytes([changed]) + a_gguf[at + 1 :])
    with contextlib.suppress(ModelLoadError):
        Checkpoint.of(read_tensors(path, mapped=True), path)


@pytest.mark.parametrize("name", ["attn.w_lora.lora.0.weight", "attn.x_x"])
def test_a_misshapen_hugging_face_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = fla_tensors(model()) | {f"model.layers.1.{name}": torch.ones(2, 3, 4)}
    with pytest.raises(ModelLoadError, match=r"has the shape \[2, 3, 4\]"):
        read_tensors(write_shards(tmp_path / "m", tensors, 1))


@needs_gguf
def test_without_the_extra_plain_ggufs_are_read_and_others_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _pth(tmp_path, model(dtype=torch.float16))
    for kind in ("f16", "q8"):
        convert(str(plain), str(tmp_path / f"{kind}.gguf"), kind)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    assert weights_of(tmp_path / "f16.gguf") == weights_of(plain)
    with pytest.raises(ModelLoadError, match=r"pip install 'langchain-rwkv-state\[gguf\]'"):
        read_tensors(tmp_path / "q8.gguf")
