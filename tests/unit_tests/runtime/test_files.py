"""Checkpoint files: both formats, every kind of wrong file, and nothing of them ever run."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.files import private_copy, read_tensors
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
        (b"GGUF" + bytes(100), "is a GGUF file"),
        (b"<!DOCTYPE html><html>404</html>", "is no checkpoint.*Is the download whole"),
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
        ([torch.ones(1)], "holds no named tensors"),
        ({}, "holds no named tensors"),
        ({"state_dict": {"emb.weight": torch.ones(1)}}, "dict 'state_dict' .the model may be"),
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
    with pytest.raises(ModelLoadError, match=r"holds no \.pth or \.safetensors"):
        read_tensors(tmp_path)
    for number in range(10):
        (tmp_path / f"m{number}.pth").touch()
    with pytest.raises(ModelLoadError, match=r"name one file, such as m0\.pth, .*m7\.pth, \.\.\."):
        read_tensors(tmp_path)


def test_copies_are_made_of_what_would_be_kept_and_of_nothing_else() -> None:
    kept, converted = torch.ones(2), torch.ones(2, dtype=torch.float16)
    tensors = {"kept": kept, "converted": converted}
    private_copy(tensors, kept=frozenset({torch.float32}))
    assert tensors["kept"].data_ptr() != kept.data_ptr()
    assert tensors["converted"] is converted
