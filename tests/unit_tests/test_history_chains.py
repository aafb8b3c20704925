"""Histories behind `RunnableWithMessageHistory`: every form of chain, run in every way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import CommaSeparatedListOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import (
    Runnable,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state.conversation.history import RWKVStateHistory
from langchain_rwkv_state.prompt.markers import message_from_json
from langchain_rwkv_state.store.base import StateStore
from tests.helpers.fake_chat import FakeChat

PROMPT = ChatPromptTemplate.from_messages(
    [MessagesPlaceholder("history"), ("human", "{question}")],
)


@pytest.fixture
def fake(store: StateStore) -> FakeChat:
    return FakeChat(store=store)


class Histories:
    """What `get_session_history` may be: a new instance for each call, or one a session."""

    def __init__(self, store: StateStore, *, shared: bool) -> None:
        self.store = store
        self.shared = shared
        self.made: dict[str, RWKVStateHistory] = {}

    def __call__(self, session_id: str) -> RWKVStateHistory:
        fresh = RWKVStateHistory(session_id, self.store)
        return self.made.setdefault(session_id, fresh) if self.shared else fresh


@pytest.fixture(params=["new_instances", "one_instance"])
def histories(store: StateStore, request: pytest.FixtureRequest) -> Histories:
    return Histories(store, shared=request.param == "one_instance")


def unread(store: StateStore, session: str = "bob") -> list[str]:
    info = store.session(session)
    return [str(message_from_json(text).text) for text in info.unread] if info else []


def config(session: str = "bob") -> Any:
    return {"configurable": {"session_id": session}}


def apologise(_: Any) -> AIMessage:
    return AIMessage("sorry")


class Form(NamedTuple):
    """A form of chain: how it is made, what it is given, what it adds to the model's reading."""

    chain: Callable[[FakeChat], Runnable[Any, Any]]
    keys: dict[str, Any]
    given: Callable[[str], Any]


def as_dict(text: str) -> Any:
    return {"question": text}


def as_messages(text: str) -> Any:
    return [HumanMessage(text)]


def last_messages(given: dict[str, Any]) -> list[BaseMessage]:
    messages: list[BaseMessage] = given["question"]
    return messages


WITH_HISTORY: dict[str, Any] = {"input_messages_key": "question", "history_messages_key": "history"}
FORMS = {
    "bare model, messages": Form(lambda chat: chat, {}, as_messages),
    "bare model, one message": Form(lambda chat: chat, {}, HumanMessage),
    "bare model, text": Form(lambda chat: chat, {}, str),
    "messages, parser": Form(lambda chat: chat | StrOutputParser(), {}, as_messages),
    "messages, strip": Form(lambda chat: chat | StrOutputParser() | str.strip, {}, as_messages),
    "prompt": Form(lambda chat: PROMPT | chat, WITH_HISTORY, as_dict),
    "prompt, message": Form(
        lambda chat: (
            ChatPromptTemplate.from_messages(
                [MessagesPlaceholder("history"), MessagesPlaceholder("question")]
            )
            | chat
        ),
        WITH_HISTORY,
        lambda text: {"question": [HumanMessage(text)]},
    ),
    "prompt, parser": Form(lambda chat: PROMPT | chat | StrOutputParser(), WITH_HISTORY, as_dict),
    "prompt, strip": Form(
        lambda chat: PROMPT | chat | StrOutputParser() | str.strip, WITH_HISTORY, as_dict
    ),
    "dict without history key": Form(
        lambda chat: RunnableLambda(last_messages) | chat | StrOutputParser(),
        {"input_messages_key": "question"},
        as_dict,
    ),
    "output key": Form(
        lambda chat: PROMPT | RunnableParallel(answer=chat, note=RunnableLambda(lambda _: "note")),
        {**WITH_HISTORY, "output_messages_key": "answer"},
        as_dict,
    ),
    "output key, parser": Form(
        lambda chat: RunnablePassthrough.assign(answer=PROMPT | chat | StrOutputParser()),
        {**WITH_HISTORY, "output_messages_key": "answer"},
        as_dict,
    ),
    "retry": Form(lambda chat: PROMPT | chat.with_retry(), WITH_HISTORY, as_dict),
    "fallbacks": Form(
        lambda chat: (PROMPT | chat).with_fallbacks([RunnableLambda(apologise)]),
        WITH_HISTORY,
        as_dict,
    ),
}
TYPICAL = {
    name: FORMS[name]
    for name in (
        "bare model, messages",
        "messages, parser",
        "prompt, parser",
        "dict without history key",
        "output key",
    )
}


def run_invoke(chain: Runnable, given: Any) -> None:
    chain.invoke(given, config())


def run_stream(chain: Runnable, given: Any) -> None:
    assert list(chain.stream(given, config()))


def run_batch(chain: Runnable, given: Any) -> None:
    chain.batch([given], [config()])


def run_ainvoke(chain: Runnable, given: Any) -> None:
    asyncio.run(chain.ainvoke(given, config()))


def run_astream(chain: Runnable, given: Any) -> None:
    async def drain() -> None:
        assert [chunk async for chunk in chain.astream(given, config())]

    asyncio.run(drain())


def run_abatch(chain: Runnable, given: Any) -> None:
    asyncio.run(chain.abatch([given], [config()]))


def run_astream_events(chain: Runnable, given: Any) -> None:
    async def drain() -> None:
        assert [event async for event in chain.astream_events(given, config(), version="v2")]

    asyncio.run(drain())


RUNS = [
    run_invoke,
    run_stream,
    run_batch,
    run_ainvoke,
    run_astream,
    run_abatch,
    run_astream_events,
]
TYPICAL_RUNS = [run_invoke, run_stream, run_ainvoke, run_astream]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_a_conversation_goes_on_in_every_form_and_way(form, run, fake, histories, store):
    chain = RunnableWithMessageHistory(form.chain(fake), histories, **form.keys)
    for text in ("one", "two", "three"):
        run(chain, form.given(text))
        assert unread(store) == []
    assert fake.told("bob") == (
        "human:one\nai:heard 1\nhuman:two\nai:heard 2\nhuman:three\nai:heard 3\n"
    )


@pytest.mark.parametrize("form", TYPICAL.values(), ids=TYPICAL)
@pytest.mark.parametrize("run", [run_invoke, run_stream, run_ainvoke])
def test_unread_text_is_read_once_in_every_form_and_way(form, run, fake, histories, store):
    RWKVStateHistory("bob", store).add_messages([HumanMessage("zero"), AIMessage("foreign")])
    chain = RunnableWithMessageHistory(form.chain(fake), histories, **form.keys)
    for text in ("one", "two"):
        run(chain, form.given(text))
    assert fake.told("bob") == (
        "human:zero\nai:foreign\nhuman:one\nai:heard 2\nhuman:two\nai:heard 3\n"
    )
    assert unread(store) == []


# -- prompts -----------------------------------------------------------------------------------

MANNERED = ChatPromptTemplate.from_messages(
    [("system", "Be {manner}."), MessagesPlaceholder("history"), ("human", "{question}")]
)


def test_a_system_prompt_is_read_once(fake, histories):
    chain = RunnableWithMessageHistory(MANNERED | fake, histories, **WITH_HISTORY)
    for text in ("one", "two"):
        chain.invoke({"question": text, "manner": "kind"}, config())
    assert fake.told("bob") == ("system:Be kind.\nhuman:one\nai:heard 1\nhuman:two\nai:heard 2\n")


def test_a_changing_system_prompt_changes_nothing_for_the_history(fake, histories, store):
    chain = RunnableWithMessageHistory(MANNERED | fake, histories, **WITH_HISTORY)
    for text, manner in (("one", "kind"), ("two", "kind"), ("three", "brief")):
        chain.invoke({"question": text, "manner": manner}, config())
    assert fake.told("bob") == (
        "system:Be kind.\nhuman:one\nai:heard 1\nhuman:two\nai:heard 2\n"
        "system:Be brief.\nhuman:three\nai:heard 3\n"
    )
    assert unread(store) == []


# -- what lies between the model and the answer ------------------------------------------------


def shout(text: str) -> str:
    return text.upper()


@pytest.mark.parametrize("run", TYPICAL_RUNS)
def test_a_rewritten_answer_is_told_to_the_model_as_it_was_shown(run, fake, histories, store):
    chain = RunnableWithMessageHistory(
        PROMPT | fake | StrOutputParser() | RunnableLambda(shout), histories, **WITH_HISTORY
    )
    for text in ("one", "two", "three"):
        run(chain, {"question": text})
        assert unread(store)[0] == text
        assert len(unread(store)) == 2
    assert fake.told("bob") == "human:one\nai:HEARD 1\nhuman:two\nai:HEARD 2\n"


@pytest.mark.parametrize("run", [run_invoke, run_ainvoke])
def test_a_parser_that_gives_a_dict_leaves_the_turn_unread(run, fake, histories, store):
    def parse(text: str) -> dict[str, Any]:
        return {"answer": f"parsed: {text}", "score": 1}

    chain = RunnableWithMessageHistory(
        PROMPT | fake | StrOutputParser() | parse,
        histories,
        **WITH_HISTORY,
        output_messages_key="answer",
    )
    run(chain, {"question": "one"})
    run(chain, {"question": "two"})
    assert fake.told("bob") == "human:one\nai:parsed: heard 1\n"
    assert unread(store) == ["two", "parsed: heard 2"]


def test_a_parser_that_gives_a_list_leaves_the_turn_unread(fake, histories, store):
    fake.script = ["red, green"]
    chain = RunnableWithMessageHistory(
        PROMPT | fake | CommaSeparatedListOutputParser(), histories, **WITH_HISTORY
    )
    assert chain.invoke({"question": "colours?"}, config()) == ["red", "green"]
    assert unread(store) == ["colours?", "red", "green"]


@pytest.mark.parametrize("run", TYPICAL_RUNS)
def test_a_chain_that_calls_the_model_twice_commits_the_call_that_answered(
    run, fake, histories, store
):
    fake.script = ["draft", "final"]
    again: Any = RunnableLambda(lambda draft: f"better than {draft}, please")
    chain = RunnableWithMessageHistory(
        RunnablePassthrough.assign(question=PROMPT | fake | StrOutputParser() | again)
        | PROMPT
        | fake
        | StrOutputParser(),
        histories,
        **WITH_HISTORY,
    )
    run(chain, {"question": "one"})
    assert fake.told("bob") == "human:better than draft, please\nai:final\n"
    assert unread(store) == []


def test_a_foreign_answer_after_the_models_own_call_stays_unread(fake, histories, store):
    polish: Any = RunnableLambda(lambda _: AIMessage("polished elsewhere"))
    chain = RunnableWithMessageHistory(PROMPT | fake | polish, histories, **WITH_HISTORY)
    chain.invoke({"question": "one"}, config())
    assert store.head("bob") is None
    assert unread(store) == ["one", "polished elsewhere"]


@pytest.mark.parametrize("run", TYPICAL_RUNS)
@pytest.mark.parametrize("chosen", ["left", "right"])
def test_of_parallel_branches_the_chosen_one_is_committed(run, chosen, fake, histories):
    left, right = FakeChat(store=fake.store), FakeChat(store=fake.store)
    left.texts = right.texts = fake.texts
    left.script, right.script = ["from the left"], ["from the right"]
    chain = RunnableWithMessageHistory(
        PROMPT | RunnableParallel(left=left, right=right),
        histories,
        **WITH_HISTORY,
        output_messages_key=chosen,
    )
    run(chain, {"question": "one"})
    assert fake.told("bob") == f"human:one\nai:from the {chosen}\n"


def test_parallel_branches_that_agree_but_read_differently_stay_unread(fake, histories, store):
    other: Any = MANNERED.partial(manner="brief")
    chain = RunnableWithMessageHistory(
        RunnableParallel(left=PROMPT | fake, right=other | fake),
        histories,
        **WITH_HISTORY,
        output_messages_key="left",
    )
    chain.invoke({"question": "one"}, config())
    assert store.head("bob") is None
    assert unread(store) == ["one", "heard 1"]


# -- failures in the chain ---------------------------------------------------------------------


def test_a_retry_commits_the_answer_of_the_attempt_that_succeeded(fake, histories, store):
    fake.script = [ValueError("a passing failure")]
    chain = RunnableWithMessageHistory(
        PROMPT | fake.with_retry(wait_exponential_jitter=False), histories, **WITH_HISTORY
    )
    chain.invoke({"question": "one"}, config())
    assert fake.told("bob") == "human:one\nai:heard 1\n"


@pytest.mark.parametrize("second", ["same", "other"])
def test_a_retry_of_model_and_parser_commits_the_answer_given(second, fake, histories, store):
    fake.script = ["same", second]
    attempts = []

    def parse(text: str) -> str:
        attempts.append(text)
        if len(attempts) == 1:
            raise ValueError("not well-formed")
        return text

    whole = PROMPT | fake | StrOutputParser() | RunnableLambda(parse)
    chain = RunnableWithMessageHistory(
        whole.with_retry(wait_exponential_jitter=False), histories, **WITH_HISTORY
    )
    chain.invoke({"question": "one"}, config())
    assert fake.told("bob") == f"human:one\nai:{second}\n"
    assert unread(store) == []


@pytest.mark.parametrize("run", TYPICAL_RUNS)
def test_a_fallback_to_another_model_is_told_with_the_next_turn(run, fake, histories, store):
    fake.script = [ValueError("overloaded")]
    other: Any = RunnableLambda(lambda _: AIMessage("from another model"))
    chain = RunnableWithMessageHistory(
        PROMPT | fake.with_fallbacks([other]), histories, **WITH_HISTORY
    )
    run(chain, {"question": "one"})
    assert unread(store) == ["one", "from another model"]
    run(chain, {"question": "two"})
    assert fake.told("bob") == "human:one\nai:from another model\nhuman:two\nai:heard 2\n"
    assert unread(store) == []


@pytest.mark.parametrize("form", ["prompt", "bare model, messages"])
@pytest.mark.parametrize("run", TYPICAL_RUNS)
def test_a_chain_that_fails_leaves_the_session_as_it_was(run, form, fake, histories, store):
    chain_of, keys, given = FORMS[form]
    chain = RunnableWithMessageHistory(chain_of(fake), histories, **keys)
    run(chain, given("one"))
    before = store.head("bob")
    fake.script = [ValueError("out of order")]
    with pytest.raises(ValueError, match="out of order"):
        run(chain, given("two"))
    assert store.head("bob") == before
    assert unread(store) == []
    run(chain, given("three"))
    assert fake.told("bob") == "human:one\nai:heard 1\nhuman:three\nai:heard 2\n"


def test_a_stream_that_is_left_commits_nothing(fake, histories, store):
    chain = RunnableWithMessageHistory(fake, histories)
    stream: Any = chain.stream([HumanMessage("one")], config())
    next(stream)
    stream.close()
    assert store.head("bob") is None


# -- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_batch_keeps_sessions_apart(form, fake, histories):
    chain = RunnableWithMessageHistory(form.chain(fake), histories, **form.keys)
    names = ["ann", "bob", "cy"]
    for text in ("one", "two"):
        chain.batch([form.given(f"{name} {text}") for name in names], [config(n) for n in names])
    for name in names:
        assert fake.told(name) == (f"human:{name} one\nai:heard 1\nhuman:{name} two\nai:heard 2\n")


def settled(fake: FakeChat, chain: Runnable, given: Callable[[str], Any]) -> str:
    """What the session has been told once everything unread is read."""
    for text in ("last", "really last"):
        chain.invoke(given(text), config())
    assert unread(fake.store) == []
    return fake.told("bob")


def test_one_of_several_like_answers_never_passes_for_another(fake, store):
    """Calls at once on one history share a turn; here the first to end leaves before the others."""
    history = RWKVStateHistory("bob", store)
    [mark] = history.messages
    asked = {name: [mark, HumanMessage(f"turn {name}")] for name in "abc"}
    answers = {name: fake.invoke(asked[name]) for name in "ab"}
    assert answers["a"].content == answers["b"].content
    history.add_messages([*asked["b"], answers["b"]])
    answers["c"] = fake.invoke(asked["c"])
    for name in "ac":
        history.add_messages([*asked[name], answers[name]])
    told = settled(
        fake, RunnableWithMessageHistory(fake, lambda _: history), lambda text: [HumanMessage(text)]
    )
    assert [told.count(f"human:turn {name}\n") for name in "abc"] == [1, 1, 1]


@pytest.mark.parametrize("form", TYPICAL.values(), ids=TYPICAL)
@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize("way", ["threads", "batch", "gather"])
def test_turns_at_once_on_one_session_are_each_told_once(form, way, waiting, fake, histories):
    together = threading.Barrier(3)

    def wait() -> None:
        if not together.broken:
            together.wait(10)

    for _ in range(waiting):
        history = RWKVStateHistory("bob", fake.store)
        history.add_messages([HumanMessage("zero"), AIMessage("foreign")])
    fake.before_answer = wait
    chain = RunnableWithMessageHistory(form.chain(fake), histories, **form.keys)
    questions = ["turn a", "turn b", "turn c"]
    if way == "threads":
        threads = [
            threading.Thread(target=chain.invoke, args=(form.given(text), config()))
            for text in questions
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    elif way == "batch":
        chain.batch([form.given(text) for text in questions], [config()] * 3)
    else:

        async def gather() -> None:
            calls = [chain.ainvoke(form.given(text), config()) for text in questions]
            await asyncio.gather(*calls)

        asyncio.run(gather())
    fake.before_answer = None
    together.abort()
    told = settled(fake, chain, form.given)
    for text in questions:
        assert told.count(f"human:{text}\n") == 1
    assert told.count("foreign") == waiting
