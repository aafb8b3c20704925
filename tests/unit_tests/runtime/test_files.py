"""Checkpoint files: both formats, every kind of wrong file, and nothing of them ever run."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint import pth_file, read_tensors, safetensors_file
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint

SUFFIXES = [".pth", ".safetensors"]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    tensors = random_checkpoint(7, dtype=torch.bfloat16)
    found = read_tensors(write_checkpoint(tmp_path / f"m{suffix}", tensors=tensors))
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_file_of_before_pytorch_1_6_is_read(tmp_path: Path) -> None:
    tensors = random_checkpoint(4)
    torch.save(tensors, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "m.pth")["head.weight"], tensors["head.weight"])


def test_parameters_are_read_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"emb.weight": torch.nn.Parameter(torch.ones(2, 2))}, tmp_path / "m.pth")
    tensor = read_tensors(tmp_path / "m.pth")["emb.weight"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_tensors_that_share_memory_or_are_views_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], torch.load

    def watched(*args: Any, **options: Any) -> Any:
        loads.append(options["mmap"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", watched)
    whole = torch.arange(12, dtype=torch.float16).reshape(3, 4)
    tensors = {"whole": whole, "turned": whole.t(), "part": whole[1:, 2:], "none": whole[:0]}
    torch.save({**tensors, "large": torch.arange(1_000_000)}, tmp_path / "m.pth")
    found = read_tensors(tmp_path / "m.pth")
    assert torch.equal(found.pop("large"), torch.arange(1_000_000))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()
    assert found["turned"].data_ptr() == found["whole"].data_ptr()
    assert loads == [True]  # for the pickle alone: the numbers are read here


def test_of_a_trainers_file_the_model_alone_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def watched(file: Any, place: int, mapped: torch.UntypedStorage) -> torch.UntypedStorage:
        read.append(mapped.nbytes())
        return storage(file, place, mapped)

    storage = pth_file._storage
    monkeypatch.setattr(pth_file, "_storage", watched)
    optimizer = {"state": {0: torch.zeros(1_000_000)}}
    torch.save({"optimizer": optimizer, "model": {"emb.weight": torch.ones(3, 5)}}, tmp_path / "m")
    assert torch.equal(read_tensors(tmp_path / "m")["emb.weight"], torch.ones(3, 5))
    assert read == [60]


def test_an_archive_whose_storages_are_not_found_is_read_as_pytorch_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_checkpoint(7)
    path = write_checkpoint(tmp_path / "m.pth", tensors=tensors)
    monkeypatch.setattr(pth_file, "_records", lambda _: {})
    found = read_tensors(path)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", 7)
    assert "emb.weight" in read_tensors(path.rename(tmp_path / "m.pth"))


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("place", ["value", "key", "root", "attribute"])
def test_a_payload_is_refused_and_not_run(tmp_path: Path, archive: bool, place: str) -> None:
    target = tmp_path / "ran"
    tensors: dict[Any, Any] = dict(random_checkpoint(7))
    payload = Payload(target)
    if place == "attribute":
        tensors["emb.weight"].note = payload
    found: object = {
        "value": tensors | {"blocks.0.extra": payload},
        "key": tensors | {payload: torch.ones(1)},
        "root": payload,
        "attribute": tensors,
    }[place]
    torch.save(found, tmp_path / "m.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(ModelLoadError, match="nothing of it was run"):
        read_tensors(tmp_path / "m.pth")
    assert not target.exists()


def test_a_payload_is_not_run_when_the_environment_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"emb.weight": Payload(tmp_path / "ran")}, tmp_path / "m.pth")
    with pytest.raises(ModelLoadError, match="refused"):
        read_tensors(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ModelLoadError, match="is no checkpoint"):
        read_tensors(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_checkpoint(tmp_path / f"m{suffix}", 7)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelLoadError, match=re.escape(str(path)) + ".*again"):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".bin"])
def test_an_empty_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.touch()
    with pytest.raises(ModelLoadError, match="is empty: download it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + bytes(100), "is not a whole GGUF file"),
        (b"<!DOCTYPE html><html>404</html>", "is no checkpoint but a text.*Is the download whole"),
        (b'{"model_type": "rwkv7"}', "is no checkpoint but a JSON file: pass the folder"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 382\n",
            "is no checkpoint but a pointer.*git lfs pull",
        ),
        (bytes(range(256)), "is no checkpoint: an RWKV checkpoint is"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        read_tensors(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([torch.ones(1)], "a list of tensors.*how the rwkv package keeps a state.*import_tensors"),
        (torch.ones(1), "holds no named tensors"),
        ({}, "holds no named tensors"),
        ({"net": {"emb.weight": torch.ones(1)}}, "dict 'net' .the model may be"),
        ({"state_dict": {"step": 3}}, "holds int 'step' where a tensor should be"),
        ({"step": 3}, "holds int 'step' where a tensor should be"),
        ({"_strategy": "cpu fp32", "_version": "0.7"}, "converted .* for the strategy 'cpu fp32'"),
    ],
)
def test_what_is_not_named_tensors_is_named(tmp_path: Path, found: object, message: str) -> None:
    torch.save(found, tmp_path / "m.pth")
    with pytest.raises(ModelLoadError, match=message):
        read_tensors(tmp_path / "m.pth")


def test_a_missing_file_brings_near_matches(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "rwkv-7-world.pth", 7)
    with pytest.raises(ModelLoadError, match=r"did you mean rwkv-7-world\.pth\?"):
        read_tensors(tmp_path / "rwkv7-world.pth")
    with pytest.raises(ModelLoadError, match="check the path"):
        read_tensors(tmp_path / "nowhere" / "m.pth")


def test_a_directory_brings_the_files_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"holds no \.pth, \.safetensors or \.gguf"):
        read_tensors(tmp_path)
    (tmp_path / "m0.pth").touch()
    with pytest.raises(ModelLoadError, match=r"m0\.pth is empty"):
        read_tensors(tmp_path)
    for number in range(10):
        (tmp_path / f"m{number}.pth").touch()
    with pytest.raises(ModelLoadError, match=r"name one file, such as m0\.pth, .*m7\.pth, \.\.\."):
        read_tensors(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("strategy", ["auto", "package cpu fp32"])
def test_a_file_that_is_cut_short_once_it_was_read_harms_nobody(
    tmp_path: Path, suffix: str, strategy: str
) -> None:
    path = write_checkpoint(tmp_path / f"m{suffix}", 7)
    program = f"""
import os
from langchain_rwkv_state.runtime import load_runtime, loader
looked_at = loader.Checkpoint.of
def cut(tensors, path):
    os.truncate(path, 1000)
    return looked_at(tensors, path)
loader.Checkpoint.of = cut
runtime = load_runtime({str(path)!r}, {strategy!r})
print(runtime.forward([1, 2], runtime.zero_state())[0].isfinite().all().item())
"""  # a process of its own: a mapped file would end it
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["True"]), done.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("deed", ["cut", "other bytes", "another file"])
def test_a_file_that_is_written_to_while_it_is_read_is_an_error(
    tmp_path: Path, suffix: str, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / f"m{suffix}", 7)
    whole = path.read_bytes()

    def written_to(read: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            if deed == "cut":
                os.truncate(path, 1000)
            elif deed == "other bytes":
                path.write_bytes(whole)
            else:
                (tmp_path / "new").write_bytes(whole)
                (tmp_path / "new").replace(path)
            return read(*args, **options)

        return wrapper

    monkeypatch.setattr(torch, "load", written_to(torch.load))
    monkeypatch.setattr(safetensors_file, "_tensor", written_to(safetensors_file._tensor))
    with pytest.raises(ModelLoadError, match=re.escape(str(path)) + " was changed or cut short"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F4"}, "nothing known of 'b': 'F4'"),
        ({"shape": [2, -1]}, "-1 is no size"),
        ({"shape": [2, True]}, "True is no size"),
        ({"shape": [3, 3]}, "'b' has 16 bytes for a shape of"),
        ({"data_offsets": [16, 16 + (1 << 60)]}, "'b' has"),
        ({"data_offsets": [0, 16]}, "'b' begins at 0, where 16 is next"),
        ({"data_offsets": [20, 36]}, "'b' begins at 20, where 16 is next"),
        ({"data_offsets": [16]}, "nothing known of 'b'"),
        (None, "nothing known of 'b'"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    place = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header: dict[str, Any] = {"__metadata__": {"a": "b"}, "a": place}
    header["b"] = change and {**place, "data_offsets": [16, 32], **change}
    written = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(
        len(written).to_bytes(8, "little") + written + bytes(32)
    )
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        read_tensors(tmp_path / "m.safetensors")


def test_what_the_library_writes_of_every_dtype_and_shape_is_read(tmp_path: Path) -> None:
    tensors = {
        "none": torch.zeros(0, 3),
        "one": torch.tensor(1.5),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "true": torch.tensor([True, False]),
        **{
            str(dtype): torch.randn(3, 5).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        },
    }
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        kept = tensor.float() if tensor.dtype == torch.float64 else tensor
        assert found[name].dtype == kept.dtype
        assert torch.equal(found[name], kept)


def test_a_pickle_that_confuses_pytorch_is_damaged(tmp_path: Path, monkeypatch) -> None:
    def load(*_: object, **__: object) -> object:
        return ().dtype  # type: ignore[attr-defined]  # as it happened with a fuzzed file

    path = write_checkpoint(tmp_path / "m.pth", 7)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ModelLoadError, match=r"damaged .*'tuple' object has no attribute 'dtype'"):
        read_tensors(path)
