"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from langchain_rwkv_state._files import require_new, whole_file, write_new, write_whole


def test_a_file_holds_all_pieces_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"one", memoryview(b" two"))
    assert path.read_bytes() == b"one two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_there_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_of_two_who_make_a_new_file_one_is_refused(tmp_path):
    path = tmp_path / "file"

    def race() -> None:
        with whole_file(path, new=True) as late:
            write_whole(path, b"first", new=True)
            late.write(b"second")

    with pytest.raises(FileExistsError):
        race()
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"first"]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


@pytest.mark.posix
def test_a_file_that_is_there_is_refused_before_any_work(tmp_path):
    path = tmp_path / "file"
    assert require_new(path) == path
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="there already"):
        require_new(path)
    with pytest.raises(FileExistsError), whole_file(path, new=True):
        pass
    with pytest.raises(FileNotFoundError, match="no directory"):
        require_new(tmp_path / "none" / "file")


@pytest.mark.skipif(not hasattr(os, "writev"), reason="this system writes piece by piece")
def test_a_disk_that_takes_only_some_of_the_pieces_gets_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "writev", lambda handle, parts: os.write(handle, parts[0] + parts[1][:1])
    )
    write_new(tmp_path / "file", [b"one", b"two", b"", b"three"])
    assert (tmp_path / "file").read_bytes() == b"onetwothree"
