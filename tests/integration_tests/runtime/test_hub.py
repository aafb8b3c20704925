"""Models from a hub, against a server on the loopback that speaks its few endpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime import load_runtime
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint
from tests.helpers.hub_server import HubServer, hub_server
from tests.helpers.hugging_face import write_hugging_face

NAME = "org/repo/RWKV-x070-tiny.pth"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_checkpoint(tmp_path_factory.mktemp("hub") / "m.pth", 7, n_embd=64, head_size=32)
    return path.read_bytes()


@pytest.fixture
def hub(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server({"README.md": b"# tiny", "RWKV-x070-tiny.pth": content}) as server:
        _point_at(server.url, tmp_path / "cache", monkeypatch)
        yield server


def _point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()


def load_and_close(name: str) -> str:
    runtime = load_runtime(name, "cpu fp32")
    runtime.forward([1, 2], runtime.zero_state())
    runtime.close()
    return runtime.fingerprint


def test_a_file_is_downloaded_once_and_then_cached(hub: HubServer, tmp_path: Path) -> None:
    first = load_and_close(NAME)
    assert hub.downloads() == [None]
    assert load_and_close(NAME) == first
    assert hub.downloads() == [None]
    assert list((tmp_path / "cache" / "models--org--repo" / "blobs").iterdir())


def test_a_repository_with_one_checkpoint_needs_no_file_name(hub: HubServer) -> None:
    assert load_and_close("org/repo") == load_and_close(NAME)


def test_the_safetensors_of_a_pair_is_taken(hub: HubServer, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", 7, n_embd=64, head_size=32)
    hub.files["RWKV-x070-tiny.safetensors"] = path.read_bytes()
    load_and_close("org/repo")
    assert [path for method, path, _ in hub.asked if method == "GET" and "resolve" in path] == [
        "/org/repo/resolve/main/RWKV-x070-tiny.safetensors"
    ]


def test_several_checkpoints_are_listed(hub: HubServer, content: bytes) -> None:
    hub.files["other.pth"] = content
    with pytest.raises(ModelLoadError, match=r"several checkpoints: name one of\s+org/repo/RWKV"):
        load_runtime("org/repo", "cpu fp32")
    assert hub.downloads() == []


def test_a_repository_without_a_checkpoint_is_told(hub: HubServer) -> None:
    del hub.files["RWKV-x070-tiny.pth"]
    with pytest.raises(ModelLoadError, match=r"org/repo holds no \.pth"):
        load_runtime("org/repo", "cpu fp32")


@pytest.fixture
def folder(hub: HubServer, tmp_path: Path) -> Path:
    """A Hugging Face folder of two shards that the hub has beside a README."""
    folder = write_hugging_face(tmp_path / "theirs", random_checkpoint(7, head_size=64), shards=2)
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.files["README.md"] = b"# a model"
    return folder


def test_a_hugging_face_folder_of_shards_is_taken_whole(hub: HubServer, folder: Path) -> None:
    first = load_and_close("org/repo")
    assert first == load_and_close(str(folder))
    assert len(hub.downloads()) == 4  # two shards, their index, config.json
    assert load_and_close("org/repo") == first
    assert len(hub.downloads()) == 4


def test_a_folder_inside_a_repository_is_taken_whole(hub: HubServer, folder: Path) -> None:
    hub.files = {f"small/{name}": content for name, content in hub.files.items()}
    hub.files["other.pth"] = b"PK"
    assert load_and_close("org/repo/small") == load_and_close(str(folder))
    with pytest.raises(ModelLoadError, match="has no file 'large'"):
        load_runtime("org/repo/large", "cpu fp32")


def test_one_file_of_a_hugging_face_folder_brings_its_settings(
    hub: HubServer, tmp_path: Path
) -> None:
    tensors = random_checkpoint(7, head_size=64)
    folder = write_hugging_face(tmp_path / "theirs", tensors, hidden_act="gelu")
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ModelLoadError, match="hidden_act is 'gelu'"):
        load_runtime("org/repo", "cpu fp32")


def test_a_folder_in_the_cache_needs_no_network(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_and_close("org/repo")
    hub.shutdown()
    hub.server_close()
    huggingface_hub.close_session()
    assert load_and_close("org/repo") == first


def test_a_download_that_breaks_off_goes_on_where_it_broke(
    hub: HubServer, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = 1000  # huggingface_hub keeps whole pieces; they are larger than this file by default
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", piece)
    hub.break_after_bytes = [5 * piece + 1, 3 * piece + 1]
    load_and_close(NAME)
    assert hub.downloads() == [None, f"bytes={5 * piece}-", f"bytes={8 * piece}-"]


def test_an_unknown_file_brings_near_matches(hub: HubServer) -> None:
    with pytest.raises(ModelLoadError, match=r"did you mean RWKV-x070-tiny\.pth\?"):
        load_runtime("org/repo/RWKV-x070-tinny.pth", "cpu fp32")


def test_an_unknown_repository_is_named(hub: HubServer) -> None:
    for name in ("org/none", "org/none/m.pth"):
        with pytest.raises(ModelLoadError, match="no path 'org/none' here and no model"):
            load_runtime(name, "cpu fp32")


def test_a_gated_repository_says_what_to_do(hub: HubServer) -> None:
    hub.gated = True
    with pytest.raises(ModelLoadError, match="accept its terms on its page and set HF_TOKEN"):
        load_runtime(NAME, "cpu fp32")


def test_a_hub_that_fails_is_told(hub: HubServer) -> None:
    hub.status = 418
    for name in (NAME, "org/repo"):
        with pytest.raises(ModelLoadError, match="hub"):
            load_runtime(name, "cpu fp32")


def test_a_downloaded_file_is_checked_like_any_other(hub: HubServer, content: bytes) -> None:
    hub.files["RWKV-x070-tiny.pth"] = content[: len(content) // 2]
    with pytest.raises(ModelLoadError, match="truncated or damaged"):
        load_runtime(NAME, "cpu fp32")


def test_no_network_is_a_clear_error(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_and_close(NAME)
    hub.shutdown()
    hub.server_close()
    huggingface_hub.close_session()  # a connection that is open would be served on
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.1, raising=False)
    load_and_close(NAME)  # from the cache
    for name in ("org/other/m.pth", "org/other"):
        with pytest.raises(ModelLoadError, match=r"cannot be reached .*path of a local file"):
            load_runtime(name, "cpu fp32")


def test_the_environment_is_honoured_and_nothing_is_printed(hub: HubServer, tmp_path: Path) -> None:
    program = (
        "from langchain_rwkv_state.runtime import load_runtime\n"
        f"runtime = load_runtime({NAME!r}, 'cpu fp32')\n"
        "runtime.forward([1], runtime.zero_state())\n"
    )
    environ = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = _run(program, environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "home" / "hub" / "models--org--repo" / "snapshots").iterdir())
    asked = len(hub.asked)
    program += "load_runtime('org/other/m.pth', 'cpu fp32')\n"
    done = _run(program, environ | {"HF_HUB_OFFLINE": "1"})
    assert "ModelLoadError: org/other/m.pth is neither a file here nor in the cache" in done.stderr
    assert len(hub.asked) == asked


def _run(program: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
