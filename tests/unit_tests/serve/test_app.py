"""What is refused before a route has it: paths, methods, and bodies that are no JSON."""

from __future__ import annotations

import pytest

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.serve import answers
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


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_mistake_of_the_servers_is_not_told_as_one_of_the_clients(
    client, monkeypatch, path
):
    def broken(*_):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(answers, "_reason", broken)
    said = (
        {"messages": [{"role": "user", "content": "Hi."}]} if "chat" in path else {"input": "Hi."}
    )
    reply = await client.post(path, {"model": "demo", **said})
    assert reply.status == 500
    assert b"of ours" not in reply.body


async def test_a_name_that_no_conversation_can_have_is_the_clients_mistake(client):
    for method in ("GET", "DELETE"):
        reply = await client.request(method, f"/v1/conversations/{'a' * 513}")
        assert reply.status == 400, reply.body
