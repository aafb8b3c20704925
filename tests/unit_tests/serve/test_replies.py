"""Replies as they are sent: to whoever reads, and to whoever does not."""

import asyncio

import pytest

from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.serve import replies
from langchain_rwkv_state.serve.errors import as_api_error
from langchain_rwkv_state.serve.replies import EventStream


async def test_a_client_that_takes_nothing_of_its_stream_is_left(monkeypatch, caplog):
    monkeypatch.setattr(replies, "_STALLED_SECONDS", 0.02)
    left = asyncio.Event()

    async def endless():
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            left.set()

    sent = []

    async def receive():
        return await asyncio.Future()

    async def send(message):
        sent.append(message["type"])
        if len(sent) == 4:  # what the sockets hold is full
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        await EventStream(endless())({}, receive, send)
    assert left.is_set()
    assert len(sent) == 4
    assert "took nothing of its stream" in caplog.text


@pytest.mark.parametrize("kind", [StateCorrupt, StoreError, StoreFull])
def test_where_the_store_is_stands_in_the_log_alone(kind, caplog):
    told = as_api_error(kind("A state could not be written to /srv/states/7d/7d6b."))
    assert told.status >= 500
    assert "/srv" not in told.message
    assert "/srv/states" in caplog.text
