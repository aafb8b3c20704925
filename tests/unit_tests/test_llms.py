import asyncio
import json
import pickle
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumpd, load
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_rwkv_state import RWKVLLM
from langchain_rwkv_state.errors import EngineBusy, MarkerError, StateMismatch, StateNotFound
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from tests.helpers.watch import is_idle, wait_until, watch

NOWHERE = "rwkv1-" + "0" * 64


@pytest.fixture
def llm(make_llm):
    return make_llm(7)


def told(llm: RWKVLLM, prompt: str, **options: Any) -> tuple[str, str]:
    """Returns an answer's text and reference."""
    [[generation]] = llm.generate([prompt], **options).generations
    assert generation.generation_info is not None
    return generation.text, generation.generation_info[STATE_KEY]


class TestEveryWayOfAsking:
    def test_a_plan_is_what_a_call_asks_the_engine(self, llm):
        engine, planned, request = llm.plan_call("Once upon", ["."], {"max_tokens": 5})
        done = engine.submit(request).result()
        assert done.text == llm.invoke("Once upon", stop=["."], max_tokens=5)
        assert tuple(planned.ids) == request.prompt
        with pytest.raises(ValueError, match="did you mean max_tokens"):
            llm.plan_call("Once upon", None, {"max_token": 5})

    async def test_gives_the_same_text(self, llm):
        expected = llm.invoke("Once upon")
        assert expected
        assert "".join(llm.stream("Once upon")) == expected
        assert llm.batch(["Once upon", "Other", "Once upon"])[::2] == [expected] * 2
        assert await llm.ainvoke("Once upon") == expected
        assert "".join([piece async for piece in llm.astream("Once upon")]) == expected
        assert (await llm.abatch(["Once upon", "Other"]))[0] == expected
        assert llm.batch(["Once upon"] * 3, config={"max_concurrency": 1}) == [expected] * 3

    def test_prompts_of_one_call_are_answered_in_one_pass(self, llm):
        watched = watch(llm)
        watched.delay_seconds = 0.01
        llm.generate([f"Once {n}" for n in range(20)])
        assert watched.widest == 20

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_too_many_prompts_are_refused_together(self, make_llm, asynchronous):
        llm = make_llm(7, slots=1, max_queue=1)
        prompts = [f"Once {n}" for n in range(20)]
        before = llm.loaded().engine.stats().decoded_tokens
        with pytest.raises(EngineBusy, match="max_queue"):
            await llm.agenerate(prompts) if asynchronous else llm.generate(prompts)
        await asyncio.to_thread(wait_until, lambda: is_idle(llm))
        assert llm.loaded().engine.stats().decoded_tokens < before + 100
        assert llm.invoke("Once")

    def test_a_chain(self, llm):
        chain = PromptTemplate.from_template("Once {what}") | llm | StrOutputParser()
        assert chain.invoke({"what": "upon"}) == llm.invoke("Once upon")

    def test_text_is_read_as_it_stands(self, llm):
        text = "User: a\n\nAssistant:"
        usage = llm.generate([text]).llm_output["token_usage"]
        assert usage["prompt_tokens"] == len(llm.loaded().template.text_ids(text, start=True))

    def test_nothing_is_committed(self, llm, store):
        llm.invoke("Once")
        assert store.sessions() == []
        assert store.stats().states == 0


class TestTheAnswer:
    def test_carries_reason_and_state(self, llm):
        result = llm.generate(["Once", "Twice"])
        infos = [generation.generation_info for [generation] in result.generations]
        assert all(set(info) == {"finish_reason", STATE_KEY} for info in infos)
        assert infos[0][STATE_KEY] != infos[1][STATE_KEY]
        usage = result.llm_output["token_usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] <= 2 * 24

    def test_of_a_stream_carries_them_once(self, llm):
        chunks = list(llm._stream("Once"))
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        text, ref = told(llm, "Once")
        assert (total.text, total.generation_info[STATE_KEY]) == (text, ref)
        assert [bool(chunk.generation_info) for chunk in chunks].count(True) == 1

    def test_tokens_reach_callbacks_once(self, llm):
        class Tokens(BaseCallbackHandler):
            def __init__(self) -> None:
                self.seen: list[str] = []

            def on_llm_new_token(self, token, **kwargs):
                self.seen.append(token)

        handler = Tokens()
        text = "".join(llm.stream("Once", config={"callbacks": [handler]}))
        assert "".join(handler.seen) == text

    def test_keeps_the_white_space_around_it(self, demo, make_llm):
        llm = make_llm("demo", max_tokens=12)
        assert llm.invoke("User: Good morning.\n\nAssistant:").startswith(" ")

    def test_ends_before_a_stop_text(self, llm):
        whole = llm.invoke("Once")
        stop = whole[4:7]
        expected = whole[: whole.index(stop)]
        assert llm.invoke("Once", stop=[stop]) == expected
        assert "".join(llm.stream("Once", stop=[stop])) == expected
        assert llm.bind(stop=[stop]).invoke("Once") == expected

    def test_with_one_seed_is_one_text(self, llm):
        hot = llm.bind(temperature=2.0, top_p=1.0)
        one, same, other = (hot.invoke("Once", seed=seed) for seed in (1, 1, 2))
        assert one == same != other

    def test_the_demo_model_answers_in_its_own_format(self, make_llm):
        llm = make_llm("demo", max_tokens=40)
        text = "User: My name is Zanzibar.\n\nAssistant: Nice to meet you, Zanzibar."
        text += "\n\nUser: What is my name?"
        assert "Zanzibar" in llm.invoke(f"{text}\n\nAssistant:", stop=["\n\n"])


class TestState:
    def test_goes_on_from_a_reference(self, llm, store):
        _first, ref = told(llm, "Once upon")
        second, after = told(llm, " And then", state=ref)
        assert store.get(after).n_tokens > store.get(ref).n_tokens
        assert llm.invoke(" And then", state=ref) == second
        assert "".join(llm.stream(" And then", state=ref)) == second
        assert llm.bind(state=ref).invoke(" And then") == second

    async def test_goes_on_from_a_reference_async(self, llm):
        _, ref = told(llm, "Once upon")
        expected = llm.invoke(" And then", state=ref)
        assert await llm.ainvoke(" And then", state=ref) == expected
        assert "".join([p async for p in llm.astream(" And then", state=ref)]) == expected

    def test_one_for_all_prompts_or_one_for_each(self, llm):
        _, one = told(llm, "One")
        _, two = told(llm, "Two")
        alone = [llm.invoke(" and", state=ref) for ref in (one, two)]
        assert llm.batch([" and", " and"], state=[one, two]) == alone
        assert llm.batch([" and", " and"], state=one) == alone[:1] * 2
        mixed = llm.batch([" and", " and"], state=[one, None])
        assert mixed == [alone[0], llm.invoke(" and")]

    def test_of_another_number_is_an_error(self, llm):
        _, ref = told(llm, "One")
        with pytest.raises(ValueError, match="2 states for 1 prompts"):
            llm.invoke("x", state=[ref, ref])

    def test_may_be_warmed_by_a_chat_model(self, chat, llm):
        ref = chat.prefill("Once upon")
        text, after = told(llm, " a time", state=ref)
        assert told(llm, "Once upon")[1] != after
        messages = chat.prefill([SystemMessage("Be kind.")])
        assert llm.invoke(" a time", state=messages)
        assert text

    @pytest.mark.parametrize(
        ("state", "error"),
        [(NOWHERE, StateNotFound), ("junk", MarkerError), ("", MarkerError)],
    )
    def test_that_is_unknown_or_malformed_is_an_error(self, llm, state, error):
        with pytest.raises(error):
            llm.invoke("x", state=state)

    def test_of_another_model_is_an_error(self, llm, make_llm):
        _, ref = told(make_llm(6), "One")
        with pytest.raises(StateMismatch):
            llm.invoke("x", state=ref)


class TestMarkers:
    def test_among_messages_are_understood_and_never_read(self, llm):
        _, ref = told(llm, "Once upon")
        messages = [marker(ref), HumanMessage("And then")]
        expected = llm.invoke("Human: And then", state=ref)
        assert llm.invoke(messages) == expected
        assert "".join(llm.stream(messages)) == expected
        assert llm.batch([messages, messages]) == [expected] * 2

    async def test_among_messages_are_understood_async(self, llm):
        _, ref = told(llm, "Once upon")
        messages = [marker(ref), HumanMessage("And then")]
        expected = llm.invoke("Human: And then", state=ref)
        assert await llm.ainvoke(messages) == expected
        assert "".join([piece async for piece in llm.astream(messages)]) == expected

    def test_of_a_new_conversation_change_nothing(self, llm):
        messages = [HumanMessage("And then")]
        assert llm.invoke([marker(None), *messages]) == llm.invoke(messages)

    def test_and_a_state_of_another_conversation_are_an_error(self, llm):
        _, one = told(llm, "One")
        _, two = told(llm, "Two")
        with pytest.raises(MarkerError, match="descend"):
            llm.invoke([marker(one), HumanMessage("x")], state=two)


class TestWhatIsRefused:
    def test_an_unknown_option(self, llm):
        with pytest.raises(ValueError, match="'suffix'"):
            llm.invoke("x", suffix="y")

    def test_a_value_out_of_range(self, llm):
        with pytest.raises(ValueError, match=r"top_p.*1\.5"):
            llm.invoke("x", top_p=1.5)

    def test_an_empty_prompt(self, llm):
        with pytest.raises(ValueError, match="empty"):
            llm.invoke("")


class TestTheGlobalCache:
    @pytest.fixture(autouse=True)
    def cache(self):
        set_llm_cache(InMemoryCache())
        yield
        set_llm_cache(None)

    def test_is_left_alone(self, make_llm):
        llm = make_llm(7, prefix_cache=False)
        watched = watch(llm)
        llm.invoke("Once")
        read = watched.tokens_read
        llm.invoke("Once")
        assert watched.tokens_read == 2 * read

    def test_is_used_where_asked_for(self, make_llm):
        llm = make_llm(7, cache=True)
        watched = watch(llm)
        first = llm.invoke("Once")
        read = watched.tokens_read
        assert llm.invoke("Once") == first
        assert watched.tokens_read == read

    async def test_never_answers_from_another_state(self, llm, make_llm):
        _, one = told(llm, "One")
        _, two = told(llm, "Two, and more of it")
        cached = make_llm(7, cache=True)
        expected = [llm.invoke(" and", state=ref) for ref in (one, two)]
        assert expected[0] != expected[1]
        assert [cached.invoke(" and", state=ref) for ref in (one, two)] == expected
        assert [await cached.ainvoke(" and", state=ref) for ref in (one, two)] == expected
        marked = [[marker(ref), HumanMessage("and")] for ref in (one, two)]
        assert [cached.invoke(m) for m in marked] == [llm.invoke(m) for m in marked]


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
class TestTravelling:
    def test_through_langchains_serialisation(self, make_llm, disk_store):
        llm = make_llm(7, store=disk_store, top_k=3)
        text = json.dumps(dumpd(llm))
        again = load(
            json.loads(text), allowed_objects=[RWKVLLM], valid_namespaces=["langchain_rwkv_state"]
        )
        assert again.asdict() == llm.asdict()
        assert again.invoke("Once") == llm.invoke("Once")
        again.unload()
        again.store.close()

    def test_pickled_without_the_weights(self, make_llm, disk_store):
        llm = make_llm(7, store=disk_store)
        expected = llm.invoke("Once")
        pickled = pickle.dumps(llm)
        assert len(pickled) < 100_000
        again = pickle.loads(pickled)
        assert again.invoke("Once") == expected
        again.unload()
        again.store.close()


class TestLeavingAStream:
    def test_stops_decoding_within_a_token(self, llm):
        watched = watch(llm)
        stream = llm.stream("Once", max_tokens=100_000)
        next(stream)
        stream.close()
        calls = len(watched.calls)
        wait_until(lambda: is_idle(llm))
        assert len(watched.calls) <= calls + 1


def test_parameters_of_tracing(llm):
    params = llm._get_ls_params(stop=["x"])
    assert params["ls_provider"] == "rwkv"
    assert params["ls_model_name"] == llm.model
    assert params["ls_model_type"] == "llm"


def test_tokens_are_counted(llm):
    assert llm.get_num_tokens("Grüße") == len(llm.get_token_ids("Grüße")) > 0


def test_unloading_lets_the_next_call_load_again(llm):
    before = llm.invoke("Once")
    llm.unload()
    assert llm.invoke("Once") == before
