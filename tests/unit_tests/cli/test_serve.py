"""The command `serve`: what it refuses before anything is served."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.serve.server import is_loopback


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        app(["serve", "--port", "0", *words])
    assert ended.value.code == 1
    return str(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "nobody is asked for a key"),
        (["--api-key-file", "nowhere"], "cannot be read"),
        (["--workers", "2", "--strategy", "cuda fp16"], "one process serves a card"),
        (["--workers", "2", "--store", "memory:"], "one process's"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(words, says, capsys, socket_enabled):
    assert says in refused(capsys, *words)


def test_an_address_that_is_taken_is_a_sentence(capsys, socket_enabled):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} cannot be had" in refused(capsys, "--port", str(port))


def test_an_extra_that_is_missing_is_named(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    assert 'pip install "langchain-rwkv-state[serve]"' in refused(capsys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_whatever_others_may_reach_needs_one(host):
    assert not is_loopback(host)
