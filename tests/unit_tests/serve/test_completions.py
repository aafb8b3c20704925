"""Completions asked of the application: several texts, echo, log-probabilities, errors."""

from __future__ import annotations

import asyncio
import threading

import pytest

from langchain_rwkv_state import RWKVLLM
from langchain_rwkv_state.errors import EngineError
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.one_tenant import app_over
from tests.helpers.scripted_chat import WORLD, ScriptedChat

PATH = "/v1/completions"


class Served:
    """A scripted model, and a client of it."""

    def __init__(self, scripted, llm, app, client):
        self.scripted, self.llm, self.client = scripted, llm, client
        self.usage = app.state.tenants.usage

    def will_go_on(self, text, said):
        _, _, request = self.llm.plan_call(text, None, {})
        self.scripted.runtime.script(request.prompt, [*WORLD.encode(said), 0])

    async def ask(self, prompt="Once", **fields):
        return await self.client.post(PATH, {"model": "demo", "prompt": prompt, **fields})

    async def answer(self, prompt="Once", **fields):
        reply = await self.ask(prompt, **fields)
        assert reply.status == 200, reply.body
        return reply.json()

    async def chunks(self, prompt="Once", **fields):
        asked = {"model": "demo", "prompt": prompt, "stream": True, **fields}
        async with self.client.stream(PATH, asked) as stream:
            found = [each async for each in stream.data()]
        assert found.pop() == "[DONE]"
        return found


@pytest.fixture
async def served():
    scripted = ScriptedChat()
    settings: dict = {"temperature": 0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    llm = RWKVLLM(model="demo", store=scripted.chat.store, prefix_cache=False, **settings)
    app = app_over(scripted.chat, llm)
    async with AsgiClient(app) as client:
        yield Served(scripted, llm, app, client)
    scripted.close()


def texts_of(chunks):
    found: dict = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return [found[index] for index in sorted(found)]


async def test_a_text_is_gone_on_from_as_it_stands(served):
    served.will_go_on("Once", " upon a time.")
    found = await served.answer()
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "text": " upon a time.", "logprobs": None, "finish_reason": "stop"}
    ]
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    chunks = await served.chunks(stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == usage
    assert texts_of(chunks) == [" upon a time."]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-1] == "stop"
    assert len(chunks) > 4


async def test_several_texts_are_gone_on_from_at_once(served):
    served.will_go_on("Once", " upon a time.")
    served.will_go_on("There was", " a king.")
    texts = ["Once", "There was"]
    found = await served.answer(texts)
    assert [choice["text"] for choice in found["choices"]] == [" upon a time.", " a king."]
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    chunks = await served.chunks(texts, stream_options={"include_usage": True})
    assert texts_of(chunks) == [" upon a time.", " a king."]
    assert chunks[-1]["usage"] == found["usage"]
    assert len(served.usage.answers) == 4
    ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(choice["index"] for choice in ends) == [0, 1]


async def test_an_echo_has_the_text_before_what_follows(served):
    served.will_go_on("Once", " upon a time.")
    found = await served.answer(echo=True)
    assert found["choices"][0]["text"] == "Once upon a time."
    assert texts_of(await served.chunks(echo=True)) == ["Once upon a time."]


async def test_there_are_16_tokens_where_nobody_says_how_many(served):
    found = await served.answer(temperature=1, seed=1)
    assert found["usage"]["completion_tokens"] == 16
    assert found["choices"][0]["finish_reason"] == "length"


async def test_log_probabilities_have_this_protocols_form(served):
    served.will_go_on("Once", " upon a time.")
    found = (await served.answer(logprobs=2))["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == " upon a time."
    assert len(found["token_logprobs"]) == len(found["text_offset"]) == len(found["tokens"])
    assert {len(each) for each in found["top_logprobs"]} == {2}
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]
    chunks = await served.chunks(logprobs=2)
    pieces = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [token for each in pieces for token in each["tokens"]] == found["tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "."}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"prompt": [5, 6]}, "prompt"),
        ({"prompt": [[5, 6]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"model": "davinci"}, "model"),
    ],
)
async def test_what_is_not_supported_is_named(served, fields, param):
    reply = await served.ask(**fields)
    assert reply.status == (404 if param == "model" else 400)
    assert reply.error["param"] == param


@pytest.mark.parametrize("fields", [{"n": 1, "best_of": 1, "suffix": "", "user": "bob"}])
async def test_what_asks_for_nothing_is_let_pass(served, fields):
    served.will_go_on("Once", " upon a time.")
    assert (await served.answer(**fields))["choices"][0]["text"] == " upon a time."


async def test_where_one_text_cannot_be_taken_none_is(served, monkeypatch):
    taken: list = []
    submit = served.scripted.engine.submit

    def refuse_the_second(request):
        if taken:
            raise EngineError("full")
        taken.append(submit(request))
        return taken[0]

    monkeypatch.setattr(served.scripted.engine, "submit", refuse_the_second)
    assert (await served.ask(["Once", "There was"])).status == 503
    assert taken[0].over


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_leaves_frees_all_slots(served, stream):
    served.will_go_on("Once", " upon a time, there was a king.")
    loop, held, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def before(_):
        if len(served.scripted.runtime.calls) == 5:
            loop.call_soon_threadsafe(held.set)
            go.wait(10)

    served.scripted.runtime.before_forward = before
    asked = {"model": "demo", "prompt": ["Once", "There was"], "stream": stream}
    exchange = served.client.send("POST", PATH, asked)
    await held.wait()
    await exchange.leave()
    go.set()
    for _ in range(100):
        if not served.scripted.engine.stats().active:
            break
        await asyncio.sleep(0.01)
    assert served.scripted.engine.stats().active == 0
    assert len(served.scripted.runtime.calls) <= 8
