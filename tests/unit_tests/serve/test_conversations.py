"""Conversations: sessions by another name, with compare-and-swap."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_rwkv_state import MemoryStateStore
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.one_tenant import app_over
from tests.helpers.scripted_chat import ScriptedChat

PATH = "/v1/conversations"


class Served:
    """A scripted model, and a client of it."""

    def __init__(self, scripted, client, usage=None):
        self.scripted, self.client, self.store = scripted, client, scripted.chat.store
        self.usage = usage

    async def begin(self, **fields):
        return (await self.client.post(PATH, fields)).json()

    async def say(self, said, conversation, **fields):
        known = {"model": "demo", "input": said, "conversation": conversation}
        return await self.client.post("/v1/responses", {**known, "max_output_tokens": 12, **fields})


@pytest.fixture
async def served():
    scripted = ScriptedChat(store=MemoryStateStore())
    scripted.will_say(" Hello.", "Hi.")
    said = [HumanMessage("Hi."), AIMessage("Hello."), HumanMessage("Who?")]
    scripted.will_say(" Bob.", said)
    app = app_over(scripted.chat)
    async with AsgiClient(app) as client:
        yield Served(scripted, client, app.state.tenants.usage)
    scripted.close()


def text_of(reply):
    assert reply.status == 200, reply.body
    return reply.json()["output"][0]["content"][0]["text"]


async def test_one_that_is_made_is_there_before_its_first_turn(served):
    made = await served.begin()
    assert made["id"].startswith("conv_")
    assert (made["object"], made["metadata"]) == ("conversation", {})
    assert (await served.client.get(f"{PATH}/{made['id']}")).json() == made
    assert served.store.stats().states == 0


async def test_it_can_be_made_without_a_body(served):
    reply = await served.client.request("POST", PATH)
    assert reply.status == 200


@pytest.mark.parametrize("given", [str, lambda name: {"id": name}])
async def test_each_turn_goes_on_from_the_one_before(served, given):
    name = (await served.begin())["id"]
    first = await served.say("Hi.", given(name))
    second = await served.say("Who?", given(name))
    assert (text_of(first), text_of(second)) == ("Hello.", "Bob.")
    assert first.json()["conversation"] == {"id": name}
    assert served.store.session(name).n_turns == 2


async def test_items_that_cannot_be_read_are_named_as_they_were_sent(served):
    reply = await served.client.post(PATH, {"items": [{"role": "user", "content": 1}]})
    assert (reply.status, reply.error["param"]) == (400, "items[0].content")


async def test_a_name_of_the_clients_own_begins_with_its_first_turn(served):
    assert (await served.client.get(f"{PATH}/bob")).status == 404
    assert text_of(await served.say("Hi.", "bob")) == "Hello."
    assert (await served.client.get(f"{PATH}/bob")).json()["id"] == "bob"
    assert text_of(await served.say("Who?", "bob")) == "Bob."


async def test_a_response_of_a_conversation_can_be_branched(served):
    first = (await served.say("Hi.", "bob")).json()
    await served.say("Else?", "bob")
    known = {"model": "demo", "input": "Who?", "previous_response_id": first["id"]}
    branch = await served.client.post("/v1/responses", known)
    assert text_of(branch) == "Bob."
    assert served.store.session("bob").n_turns == 2


async def test_items_are_read_with_the_first_turn(served):
    before = [SystemMessage("Be kind."), HumanMessage("I am Bob."), AIMessage("Yes.")]
    served.scripted.will_say(" Bob.", [*before, HumanMessage("Who?")])
    items = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "I am Bob."},
        {"role": "assistant", "content": "Yes."},
    ]
    made = await served.begin(items=items)
    assert text_of(await served.say("Who?", made["id"])) == "Bob."
    assert served.store.session(made["id"]).unread == ()


async def test_a_deleted_one_does_not_begin_anew(served):
    name = (await served.begin())["id"]
    response = (await served.say("Hi.", name)).json()
    gone = {"id": name, "object": "conversation.deleted", "deleted": True}
    assert (await served.client.request("DELETE", f"{PATH}/{name}")).json() == gone
    for reply in (
        await served.client.request("DELETE", f"{PATH}/{name}"),
        await served.client.get(f"{PATH}/{name}"),
        await served.say("Who?", name),
    ):
        assert (reply.status, reply.error["code"]) == (404, "not_found")
    known = {"model": "demo", "input": "Who?", "previous_response_id": response["id"]}
    assert text_of(await served.client.post("/v1/responses", known)) == "Bob."


async def test_who_loses_the_race_is_told_not_to_try_again(served):
    replies = await asyncio.gather(served.say("Hi.", "bob"), served.say("Hi.", "bob"))
    lost, won = sorted(replies, key=lambda reply: -reply.status)
    assert (won.status, lost.status) == (200, 409)
    assert lost.error["code"] == "conversation_conflict"
    assert "on_conflict" in lost.error["message"]
    assert "rwkv1-" not in lost.error["message"]  # a reference is the store's, not a client's
    assert lost.headers["x-should-retry"] == "false"
    assert served.store.session("bob").n_turns == 1


async def test_who_waits_has_its_turn(served):
    replies = await asyncio.gather(
        *(served.say("Hi.", "bob", on_conflict="wait") for _ in range(3))
    )
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert served.store.session("bob").n_turns == 3


async def test_a_stream_that_loses_the_race_ends_with_the_conflict(served):
    served.scripted.runtime.script(served.scripted.prompt("Go."), [66] * 500)
    known = {"model": "demo", "input": "Go.", "conversation": "bob", "stream": True}
    known["max_output_tokens"] = 500
    async with served.client.stream("/v1/responses", known) as stream:
        events = stream.data()
        await anext(events)
        ref = served.store.stage(served.scripted.runtime.zero_state())
        served.store.commit("bob", ref, None)
        last = [event async for event in events][-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "conversation_conflict"


async def test_who_leaves_in_the_middle_has_said_nothing(served):
    served.scripted.runtime.script(served.scripted.prompt("Go."), [66] * 5000)
    known = {"model": "demo", "input": "Go.", "conversation": "bob", "stream": True}
    async with served.client.stream("/v1/responses", known) as stream:
        await anext(stream.data())
    assert served.store.session("bob") is None
    assert text_of(await served.say("Hi.", "bob")) == "Hello."


async def test_who_leaves_a_turn_is_counted_what_was_read_of_it(served):
    said = "Go on. " * 50
    served.scripted.runtime.script(served.scripted.prompt(said.strip()), [66] * 5000)
    known = {"model": "demo", "input": said, "conversation": "bob", "stream": True}
    async with served.client.stream("/v1/responses", known) as stream:
        await anext(stream.data())
    [(read, cached, answered)] = served.usage.answers
    assert read - cached > 100
    assert answered


async def test_who_leaves_while_a_turn_is_made_gives_its_place_to_the_next(served):
    served.scripted.runtime.script(served.scripted.prompt("Go."), [66] * 5000)
    known = {"model": "demo", "input": "Go.", "conversation": "bob", "on_conflict": "wait"}
    async with served.client.stream("/v1/responses", {**known, "stream": True}) as stream:
        await anext(stream.data())
        assert len(served.store.queue("bob")) == 1
    assert not served.store.queue("bob")


async def test_one_that_ran_out_does_not_begin_anew():
    now = [1_796_000_000.0]
    scripted = ScriptedChat(store=MemoryStateStore(clock=lambda: now[0]))
    scripted.will_say(" Hello.", "Hi.")
    async with AsgiClient(app_over(scripted.chat, ttl=60)) as client:
        served = Served(scripted, client)
        empty, filled = (
            await served.begin(),
            await served.begin(items=[{"role": "user", "content": "Hi."}]),
        )
        used = (await served.begin())["id"]
        now[0] += 50
        assert text_of(await served.say("Hi.", used)) == "Hello."
        now[0] += 50
        for name, status in ((empty["id"], 404), (filled["id"], 404), (used, 200)):
            assert (await served.say("Who?", name)).status == status
    scripted.close()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/bob/items"), ("POST", "/bob/items"), ("POST", "/bob")]
)
async def test_no_words_and_no_metadata_are_kept(served, method, path):
    reply = await served.client.request(method, PATH + path)
    assert (reply.status, reply.error["code"]) == (400, "unsupported")
    reply = await served.client.post(PATH, {"metadata": {"a": "b"}})
    assert (reply.status, reply.error["param"]) == (400, "metadata")


async def test_a_name_may_hold_slashes(served):
    text_of(await served.say("Hi.", "shop/bob"))
    assert (await served.client.get(f"{PATH}/shop/bob")).json()["id"] == "shop/bob"
    assert "no words" in (await served.client.get(f"{PATH}/shop/bob/items")).error["message"]
    assert (await served.client.request("DELETE", f"{PATH}/shop/bob")).json()["deleted"]
