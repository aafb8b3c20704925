"""Which models are called a G1."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.peers.gguf_file import convert
from langchain_rwkv_state.runtime import is_g1
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint
from tests.helpers.hugging_face import write_hugging_face

G1 = [
    "rwkv7-g1-0.1b-20250307-ctx4096.pth",
    "RWKV7-G1a_0.4B.pth",
    "rwkv7-g1c-1.5b.st",
    "rwkv7-g0-7.2b-20250722-ctx4096.pth",
    "RWKV7-G1x.gguf",
    "rwkv7-0.1B-g1",
    "BlinkDL/rwkv7-g1",
    "BlinkDL/rwkv7-g1/rwkv7-0.1b.pth",
    "BlinkDL/models/rwkv7-g1b-0.1b.pth",
]
OTHERS = [
    "RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth",
    "RWKV-x060-World-1B6.pth",
    "demo",
    "rwkv7-g2-0.1b.pth",
    "rwkv7-g10.pth",
    "rwkv7-g1ab.pth",
    "big1-0.1b.pth",
    "rwkv7g1.pth",
    "fla-hub/rwkv7-0.1B-world",
    "/models/g1/RWKV-x070-World.pth",
    "my-g1-stuff/RWKV-x070-World-0.4B.pth",
]


@pytest.mark.parametrize("name", G1)
def test_a_g1_is_known_by_its_name(name: str) -> None:
    assert is_g1(name)
    assert is_g1(name.upper())
    assert is_g1(Path(name)) or "/" in name


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_none(name: str) -> None:
    assert not is_g1(name)


@pytest.mark.posix
def test_of_a_path_that_exists_the_last_part_counts(tmp_path: Path) -> None:
    (tmp_path / "g1").mkdir()
    path = write_checkpoint(tmp_path / "g1" / "m.pth", 7)
    assert not is_g1(path)
    (tmp_path / "current.pth").symlink_to(path.rename(tmp_path / "rwkv7-g1a.pth"))
    assert is_g1(tmp_path / "current.pth")


def test_a_folder_says_it_by_its_name_its_file_or_its_settings(tmp_path: Path) -> None:
    tensors = random_checkpoint(7)
    folder = write_hugging_face(tmp_path / "m", tensors)
    assert not is_g1(folder)
    for key in ("_name_or_path", "name"):
        (folder / "config.json").write_text(json.dumps({key: "fla-hub/rwkv7-0.1B-g1"}))
        assert is_g1(str(folder))
    write_hugging_face(folder, tensors, _name_or_path="/g1/rwkv7-world")
    assert not is_g1(folder)
    write_hugging_face(tmp_path / "rwkv7-0.1B-g1", tensors)
    assert is_g1(tmp_path / "rwkv7-0.1B-g1")
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other" / "rwkv7-g0a-7.2b.pth", 7)
    assert is_g1(tmp_path / "other")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the extra is not installed")
def test_a_gguf_says_it_in_its_metadata(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "m.pth", 7)
    for number, name in enumerate([None, "RWKV7 World 0.1B", "RWKV7 G1a 0.1B 20250901"]):
        path = tmp_path / f"{number}.gguf"
        convert(str(plain), str(path), "f16", name=name)
        assert is_g1(path) is (number == 2)


def test_what_cannot_be_read_is_judged_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "rwkv7-g1.gguf").write_bytes(b"GGUF\x03")
    assert is_g1(tmp_path / "rwkv7-g1.gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03")
    assert not is_g1(tmp_path / "m.gguf")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"name": "g1"}))
    assert not is_g1(tmp_path / "none")
