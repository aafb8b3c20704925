"""What is refused before a route has it: paths, methods, and bodies that are no JSON."""

from __future__ import annotations

import pytest

from langchain_rwkv_state import MemoryStateStore
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.one_tenant import app_over
from tests.helpers.scripted_chat import ScriptedChat


@pytest.fixture
async def client():
    scripted = ScriptedChat(store=MemoryStateStore())
    async with AsgiClient(app_over(scripted.chat)) as client:
        yield client
    scripted.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/v1/embeddings", 404, "/v1/responses"),
        ("POST", "/chat/completions", 404, "end with /v1"),
        ("GET", "/v1/chat/completions", 405, "but POST"),
        ("POST", "/v1/responses/resp_1/cancel", 400, "in the background"),
    ],
)
async def test_a_path_that_is_none_says_what_there_is(client, method, path, status, says):
    reply = await client.request(method, path)
    assert reply.status == status
    assert says in reply.error["message"]


async def test_a_body_that_is_not_said_to_be_json_is_told_of_the_header(client):
    kind = {"content-type": "application/x-www-form-urlencoded"}  # curl's own
    reply = await client.post("/v1/responses", {"model": "demo", "input": "Hi."}, headers=kind)
    assert reply.status == 400
    assert "Content-Type: application/json" in reply.error["message"]


async def test_a_body_that_is_no_json_says_where(client):
    reply = await client.request("POST", "/v1/responses", body=b'{"model": demo}')
    assert (reply.status, reply.error["param"]) == (400, None)
    assert "no JSON, at character 10" in reply.error["message"]
