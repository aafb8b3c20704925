"""Two tenants of one server: neither sees anything of the other, by id, by content, by its cost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from langchain_rwkv_state.serve import ServeSettings, make_app
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.served_tenants import bearer, write_keys

TRIES = 1000
SHORT = {"model": "demo", "max_output_tokens": 1, "temperature": 0}


@pytest.fixture
async def client(tmp_path) -> AsyncIterator[AsgiClient]:
    settings = ServeSettings(api_key_file=write_keys(tmp_path), store=f"memory:{tmp_path}")
    async with AsgiClient(make_app(settings), bearer("alice")) as made:
        yield made


async def respond(client: AsgiClient, who: str, text: str, **options):
    return await client.post(
        "/v1/responses", {**SHORT, "input": text, **options}, headers=bearer(who)
    )


def cached(reply) -> int:
    return int(reply.json()["usage"]["input_tokens_details"]["cached_tokens"])


async def test_in_a_thousand_tries_nothing_of_another_tenant_is_seen(client):
    secret = "My name is Bob. I have a dog. " * 8
    ids = [(await respond(client, "alice", secret)).json()["id"] for _ in range(3)]
    names = [(await client.post("/v1/conversations", {})).json()["id"], "diary"]
    for name in names:
        assert (await respond(client, "alice", secret, conversation=name)).status == 200
    unknown = ids[0][:-8] + ("0" * 8)
    chance = random.Random(0)

    async def by_id() -> None:
        reply = await respond(client, "bob", "Who am I?", previous_response_id=chance.choice(ids))
        assert reply.status == 404

    async def by_deletion() -> None:
        path = f"/v1/responses/{chance.choice(ids)}"
        assert (await client.request("DELETE", path, headers=bearer("bob"))).status == 404

    async def by_conversation() -> None:
        path = f"/v1/conversations/{names[0]}"
        method = chance.choice(("GET", "DELETE"))
        assert (await client.request(method, path, headers=bearer("bob"))).status == 404

    async def by_turn() -> None:
        reply = await respond(client, "bob", "Who am I?", conversation=names[0])
        assert reply.status == 404

    ways = [by_id, by_deletion, by_conversation, by_turn]
    for number in range(TRIES - 20):
        await ways[number % len(ways)]()
    for number in range(10):  # the same words again: by what they cost
        text = f"{number}. {secret}"
        await respond(client, "alice", text)
        assert cached(await respond(client, "bob", text)) == 0
        assert cached(await respond(client, "alice", text)) > 0, "the cache is at work"
    for number in range(10):  # a name that both chose is of two conversations
        reply = await respond(client, "bob", f"{number}. Who am I?", conversation="diary")
        assert cached(reply) == 0 or number
    tokens = (await respond(client, "bob", "Who?", conversation="diary")).json()["usage"]
    assert tokens["input_tokens"] < len(secret), "of alice's words nothing is in it"
    for each in ids:
        reply = await respond(client, "alice", "Who am I?", previous_response_id=each)
        assert reply.status == 200
    foreign = (await respond(client, "bob", "?", previous_response_id=ids[0])).error
    nobody = (await respond(client, "bob", "?", previous_response_id=unknown)).error
    told = foreign["message"].replace(ids[0], "ID"), foreign["code"]
    assert told == (nobody["message"].replace(unknown, "ID"), nobody["code"])
