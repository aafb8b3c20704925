"""The redis.conf of examples/deploy makes a Redis that a store accepts, as it stands."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.redis.connect import connect
from tests.helpers.redis_server import BINARY, needs_redis

pytestmark = needs_redis
CONF = Path(__file__).parents[3] / "examples" / "deploy" / "redis.conf"


def settings_are_kept(conf):
    with tempfile.TemporaryDirectory(prefix="conf") as folder:
        more = ["--port", "0", "--unixsocket", f"{folder}/s", "--dir", folder]
        server = subprocess.Popen([BINARY, str(conf), *more], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while not Path(folder, "s").exists():
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with connect(f"unix://{folder}/s?db=0") as client:
                return client.config_get("maxmemory")
        finally:
            server.kill()
            server.wait()


def test_a_store_accepts_it():
    assert settings_are_kept(CONF)


def test_without_its_settings_a_store_does_not(tmp_path):
    changed = tmp_path / "redis.conf"
    changed.write_text(CONF.read_text("utf-8").replace("appendfsync always", ""))
    with pytest.raises(StoreError):
        settings_are_kept(changed)
