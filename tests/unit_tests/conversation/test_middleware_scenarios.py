"""What agents of LangChain do beside `RWKVStateMiddleware`, in either order, held to the law.

Each scenario runs sync, with threads in memory, and async, with threads in SQLite; see
`tests.helpers.agents`.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    after_model,
    before_model,
    dynamic_prompt,
)
from langchain.agents.middleware.types import AgentMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.tools import ToolRuntime
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from langchain_rwkv_state.errors import StateMismatch, StateNotFound
from tests.helpers.agents import add, called, result, said, user
from tests.unit_tests.conversation.conftest import MakeAgent, MakeText

ONE = '{"a": 1, "b": 2}'
TWO = '{"a": 3, "b": 4}'
CALL_ONE = called(("add", {"a": 1, "b": 2}))
CALL_TWO = called(("add", {"a": 3, "b": 4}))

either_order = pytest.mark.parametrize("last", [True, False], ids=["ours last", "ours first"])


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class _Rewrite(AgentMiddleware[Any, Any, Any]):
    """Rewrites what the model answers."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return self._rewritten(handler(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return self._rewritten(await handler(request))

    def _rewritten(self, response: Any) -> Any:
        for message in response.result:
            message.content = str(message.content).replace("turn", "round")
        return response


class _MadeAnew(_Rewrite):
    """Makes answers anew, which then carry no reference."""

    def _rewritten(self, response: Any) -> Any:
        for message in response.result:
            message.response_metadata = {}
        return response


class _FirstOfTwo(AgentMiddleware[Any, Any, Any]):
    """Asks twice, and takes the first answer."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return [handler(request), handler(request)][0]

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return [await handler(request), await handler(request)][0]


class _Route(AgentMiddleware[Any, Any, Any]):
    """Lets another model answer where the user asks for it."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.other = other

    def _routed(self, request: Any) -> Any:
        asked = "other" in request.messages[-1].text
        return request.override(model=self.other) if asked else request

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(self._routed(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(self._routed(request))


class _Model(FakeListChatModel):
    """A model of another house, without states, which takes tools and calls none."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


async def test_each_turn_and_each_step_reads_what_came_since_and_no_more(make_agent: MakeAgent):
    agent = make_agent()
    await agent.say("My name is Ann.")
    assert await agent.say(f"call add {ONE}, then call add {TWO}, then say done") == "done"
    assert await agent.say("who am I?") == "You are Ann."
    await agent.expect(
        user("My name is Ann."),
        said("That was turn 1."),
        user(f"call add {ONE}, then call add {TWO}, then say done"),
        called(("add", {"a": 1, "b": 2})),
        result("3"),
        called(("add", {"a": 3, "b": 4})),
        result("7"),
        said("done"),
        user("who am I?"),
        said("You are Ann."),
    )
    await agent.law()
    block = agent.block()
    assert agent.reads() == [
        f"{block}\n\nUser: My name is Ann.\n\nAssistant:",
        f"\n\nUser: call add {ONE}, then call add {TWO}, then say done\n\nAssistant:",
        "\n\nUser: Function output:\n3\n\nAssistant:",
        "\n\nUser: Function output:\n7\n\nAssistant:",
        "\n\nUser: who am I?\n\nAssistant:",
    ]
    kept = (await agent.state()).values["messages"]
    assert [message.text for message in kept] == ["who am I?", "You are Ann."]


async def test_parallel_tool_calls(make_agent: MakeAgent):
    agent = make_agent()
    assert await agent.say(f"call add {ONE} and add {TWO}") == "The result is 7."
    await agent.say("who am I?")
    turns = await agent.law()
    assert turns[1:6] == [
        user(f"call add {ONE} and add {TWO}"),
        called(("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})),
        result("3"),
        result("7"),
        said("The result is 7."),
    ]


@either_order
async def test_pii_in_a_question_is_in_no_state(make_agent: MakeAgent, last: bool):
    agent = make_agent(PIIMiddleware("email", strategy="redact"), last=last)
    await agent.say("My name is Ann. Write to ann@example.com.")
    await agent.say("who am I?")
    turns = await agent.law()
    assert turns[1] == user("My name is Ann. Write to [REDACTED_EMAIL].")
    assert not any("ann@example" in call.before + call.read for call in agent.chat.calls)


@either_order
async def test_pii_in_an_answer_is_not_gone_on_from(make_agent: MakeAgent, last: bool):
    rule = PIIMiddleware("email", strategy="redact", apply_to_input=False, apply_to_output=True)
    agent = make_agent(rule, last=last)
    await agent.say("My name is Ann.")
    assert await agent.say("your mail?") == "Write to [REDACTED_EMAIL]."
    await agent.say("who am I?")
    await agent.say("and now?")
    turns = await agent.law()
    assert turns[3:5] == [user("your mail?"), said("Write to [REDACTED_EMAIL].")]


@either_order
async def test_pii_in_a_result_of_a_tool(make_agent: MakeAgent, last: bool):
    @tool
    def address(name: str) -> str:
        """Find an address."""
        return f"{name}@example.com"

    rule = PIIMiddleware("email", strategy="mask", apply_to_tool_results=True)
    agent = make_agent(rule, last=last, tools=[address])
    await agent.say('call address {"name": "ann"}, then say found')
    await agent.say("and now?")
    await agent.law()
    assert not any("ann@example" in call.before + call.read for call in agent.chat.calls)


@either_order
@pytest.mark.parametrize("keep", [{"keep_last": 0}, {"keep_all": True}], ids=["dropped", "kept"])
async def test_a_summary_stands_for_what_it_replaces(
    make_agent: MakeAgent, last: bool, keep: dict[str, Any]
):
    summary = SummarizationMiddleware(
        FakeListChatModel(responses=["They added."] * 9),
        trigger=("messages", 5),
        keep=("messages", 2),
    )
    agent = make_agent(summary, last=last, keep=keep, twin=False)
    await agent.say("My name is Ann.")
    before = await agent.heard()
    await agent.say(f"call add {ONE}, then call add {TWO}, then call add {ONE}, then say done")
    await agent.say("who am I?")
    thread = agent.chat.text_of((await agent.state()).values["messages"])
    if "keep_all" in keep:
        before = []
    told = "\n\n".join(await agent.heard())
    assert "They added." in told
    assert told.startswith("\n\n".join(before))
    assert told.endswith(thread)
    assert told.count("who am I?") == 1
    if "keep_all" in keep:
        assert told == thread


@pytest.mark.parametrize("keep", [{"keep_last": 0}, {"keep_all": True}], ids=["dropped", "kept"])
async def test_context_that_is_edited_is_read_as_it_was_edited(
    make_agent: MakeAgent, keep: dict[str, Any]
):
    edit = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=1)])
    agent = make_agent(edit, last=True, keep=keep)
    await agent.say(f"call add {ONE}, then call add {TWO}, then say done")
    turns = await agent.law()
    assert turns[3:6] == [result("[cleared]"), CALL_TWO, result("7")]


async def test_context_that_was_in_the_state_cannot_be_edited_behind_the_middleware(
    make_agent: MakeAgent,
):
    edit = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=1)])
    agent = make_agent(edit, last=False)
    await agent.say(f"call add {ONE}, then call add {TWO}, then say done")
    assert (await agent.heard())[2:5] == [result("3"), CALL_TWO, result("7")]


@either_order
@pytest.mark.parametrize(
    "decision",
    [
        {"type": "approve"},
        {"type": "edit", "edited_action": {"name": "add", "args": {"a": 5, "b": 6}}},
        {"type": "reject", "message": "No."},
        {"type": "respond", "message": "It is 12."},
    ],
    ids=lambda decision: decision["type"],
)
async def test_a_person_decides_on_a_call(
    make_agent: MakeAgent, last: bool, decision: dict[str, Any]
):
    allowed: Any = {"allowed_decisions": ["approve", "edit", "reject", "respond"]}
    agent = make_agent(HumanInTheLoopMiddleware({"add": allowed}), last=last)
    await agent.say("My name is Ann.")
    asked = await agent.run(f"call add {ONE}, then say done")
    assert asked["__interrupt__"]
    n_calls = len(agent.chat.calls)
    await agent.run(Command(resume={"decisions": [decision]}))
    assert len(agent.chat.calls) == n_calls + 1
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns.count(user(f"call add {ONE}, then say done")) == 1


@either_order
async def test_a_fallback_of_another_house_answers_and_the_state_goes_on_after_it(
    make_agent: MakeAgent, last: bool
):
    other = _Model(responses=["Sorry."] * 9)
    agent = make_agent(ModelFallbackMiddleware(other), last=last)
    await agent.say("My name is Ann.")
    agent.fails(RuntimeError("down"))
    with pytest.warns(UserWarning, match="state"):
        assert await agent.say("still there?") == "Sorry."
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns[3:] == [
        user("still there?"),
        said("Sorry."),
        user("who am I?"),
        said("You are Ann."),
    ]


@either_order
async def test_a_call_of_the_model_that_is_tried_again_tells_nothing_twice(
    make_agent: MakeAgent, last: bool
):
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, jitter=False, on_failure="error")
    agent = make_agent(retry, last=last)
    await agent.say("My name is Ann.")
    agent.fails(ConnectionError("1"), ConnectionError("2"))
    await agent.say("and now?")
    await agent.expect(
        user("My name is Ann."),
        said("That was turn 1."),
        user("and now?"),
        said("That was turn 2."),
    )
    await agent.law()


@either_order
async def test_a_failure_that_is_told_as_an_answer_is_read_as_one(
    make_agent: MakeAgent, last: bool
):
    retry = ModelRetryMiddleware(max_retries=0, on_failure=lambda _: "It failed.")
    agent = make_agent(retry, last=last)
    await agent.say("My name is Ann.")
    agent.fails(ConnectionError("1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert await agent.say("and now?") == "It failed."
    await agent.say("who am I?")
    turns = await agent.law()
    assert turns[3:5] == [user("and now?"), said("It failed.")]


@either_order
@pytest.mark.parametrize("n_failures", [1, 5], ids=["mended", "told"])
async def test_a_tool_that_is_tried_again(make_agent: MakeAgent, last: bool, n_failures: int):
    left = [n_failures, n_failures]  # of the agent, and of its twin
    which = iter([0] * (n_failures + 1 if n_failures == 1 else 3) + [1] * 9)

    @tool
    def flaky(a: int) -> str:
        """Fails at first."""
        at = next(which)
        if left[at]:
            left[at] -= 1
            raise ConnectionError("down")
        return str(a)

    retry = ToolRetryMiddleware(
        max_retries=2, initial_delay=0, jitter=False, on_failure=lambda _: "It failed."
    )
    agent = make_agent(retry, last=last, tools=[flaky])
    await agent.say('call flaky {"a": 1}, then say done')
    await agent.say("who am I?")
    turns = await agent.law()
    told = "1" if n_failures == 1 else "Error: It failed."
    assert turns[3] == result(told)


@either_order
async def test_a_limit_of_model_calls_ends_a_turn_and_not_the_memory(
    make_agent: MakeAgent, last: bool
):
    agent = make_agent(ModelCallLimitMiddleware(run_limit=2), last=last)
    await agent.say("My name is Ann.")
    await agent.say(f"call add {ONE}, then call add {TWO}, then call add {ONE}")
    assert await agent.say("who am I?") == "You are Ann."
    await agent.law()


@either_order
@pytest.mark.parametrize("exit_behavior", ["continue", "end"])
async def test_a_limit_of_tool_calls(make_agent: MakeAgent, last: bool, exit_behavior: Any):
    agent = make_agent(ToolCallLimitMiddleware(run_limit=1, exit_behavior=exit_behavior), last=last)
    await agent.say("My name is Ann.")
    await agent.say(f"call add {ONE}, then call add {TWO}, then say done")
    assert await agent.say("who am I?") == "You are Ann."
    await agent.law()


@either_order
async def test_a_list_of_things_to_do(make_agent: MakeAgent, last: bool):
    agent = make_agent(TodoListMiddleware(), last=last)
    todo = '{"todos": [{"content": "add", "status": "pending"}]}'
    await agent.say("My name is Ann.")
    await agent.say(f"call write_todos {todo}, then call add {ONE}, then say done")
    assert await agent.say("who am I?") == "You are Ann."
    await agent.law()
    assert (await agent.state()).values["todos"] == [{"content": "add", "status": "pending"}]


async def test_a_selection_of_tools(make_agent: MakeAgent, make_text: MakeText):
    @tool
    def unused(a: int) -> str:
        """Is never chosen."""
        return str(a)

    selector = make_text(answer=lambda _: '{"tools":["add"]}')
    select = LLMToolSelectorMiddleware(model=selector)
    agent = make_agent(select, tools=[add, unused])
    await agent.say("My name is Ann.")
    await agent.say(f"call add {ONE}, then say done")
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert "- add(" in turns[0]
    assert "- unused(" not in turns[0]


async def test_another_selection_of_tools_is_read_behind_the_state_with_a_warning(
    make_agent: MakeAgent, make_text: MakeText
):
    @tool
    def other(a: int) -> str:
        """Is chosen later."""
        return str(a)

    def choose(text: str) -> str:
        return '{"tools":["other"]}' if "User: call other" in text else '{"tools":["add"]}'

    selector = make_text(answer=choose)
    agent = make_agent(LLMToolSelectorMiddleware(model=selector), tools=[add, other], twin=False)
    await agent.say(f"call add {ONE}, then say done")
    with pytest.warns(UserWarning, match="they are read now, as new text behind it"):
        assert await agent.say('call other {"a": 4}, then say done') == "done"
    told = agent.chat.text(await agent.ref())
    assert told.count("- other(") == 1
    assert told.index("- add(") < told.index(CALL_ONE) < told.index("- other(")


async def test_a_tool_that_sees_the_thread_and_changes_it(make_agent: MakeAgent):
    @tool
    def note(text: str, runtime: ToolRuntime[Any, Any]) -> Command[Any]:
        """Note something down."""
        seen = f"{text}: {runtime.state['messages'][-2].text}"
        return Command(
            update={
                "messages": [
                    ToolMessage(seen, tool_call_id=runtime.tool_call_id),
                    HumanMessage("My name is Bob."),
                ]
            }
        )

    agent = make_agent(tools=[note])
    await agent.say("My name is Ann.")
    asked = 'call note {"text": "Noted"}, then say done'
    assert await agent.say(asked) == "That was turn 3."
    assert await agent.say("who am I?") == "You are Bob."
    turns = await agent.law()
    assert turns[5:7] == [result(f"Noted: {asked}"), user("My name is Bob.")]


@either_order
async def test_hooks_that_add_messages_and_end_a_turn(make_agent: MakeAgent, last: bool):
    @before_model(can_jump_to=["end"])
    def guard(state: Any, runtime: Any) -> dict[str, Any] | None:
        if "secret" in state["messages"][-1].text:
            return {"messages": [AIMessage("I must not.")], "jump_to": "end"}
        return None

    @after_model
    def sign(state: Any, runtime: Any) -> dict[str, Any] | None:
        signed = "sign" in state["messages"][-1].text
        return {"messages": [AIMessage("My name is Eve.")]} if signed else None

    agent = make_agent(guard, sign, last=last)
    await agent.say("My name is Ann.")
    assert await agent.say("a secret?") == "I must not."
    assert await agent.say("who am I?") == "You are Ann."
    assert await agent.say("say signed") == "My name is Eve."
    assert await agent.say("who am I?") == "You are Eve."
    turns = await agent.law()
    assert turns[3:5] == [user("a secret?"), said("I must not.")]
    assert turns[-4:-2] == [said("signed"), said("My name is Eve.")]


@either_order
async def test_a_hook_that_has_the_model_go_on_with_its_answer(make_agent: MakeAgent, last: bool):
    @after_model(can_jump_to=["model"])
    def again(state: Any, runtime: Any) -> dict[str, Any] | None:
        *_, before, answer = state["messages"]
        is_first = before.type == "human" and answer.text == "That was turn 2."
        return {"jump_to": "model"} if is_first else None

    agent = make_agent(again, last=last, twin=False)
    await agent.say("My name is Ann.")
    assert await agent.say("and now?") == "That was turn 2."
    assert len(agent.chat.calls) == 3
    await agent.say("who am I?")
    await agent.expect(
        user("My name is Ann."),
        said("That was turn 1."),
        user("and now?"),
        said("That was turn 2."),
        user("who am I?"),
        said("You are Ann."),
    )


async def test_an_interrupt_in_a_tool_is_resumed(make_agent: MakeAgent):
    @tool
    def ask(question: str) -> str:
        """Ask a person."""
        return f"{question} {interrupt(question)}"

    agent = make_agent(tools=[ask])
    await agent.say("My name is Ann.")
    asked = await agent.run('call ask {"question": "Old?"}, then call ask {"question": "Tall?"}')
    assert asked["__interrupt__"][0].value == "Old?"
    await agent.run(Command(resume="Yes."))
    await agent.run(Command(resume="No."))
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns[5] == result("Old? Yes.")
    assert turns[7] == result("Tall? No.")
    assert len(agent.chat.calls) == 5


@pytest.mark.parametrize("keep", [{"keep_last": 0}, {"keep_all": True}], ids=["dropped", "kept"])
async def test_a_structured_answer_by_a_tool(make_agent: MakeAgent, keep: dict[str, Any]):
    agent = make_agent(response_format=ToolStrategy(Person), keep=keep)
    ann = 'call Person {"name": "Ann", "age": 31}'
    found = await agent.run(f"call add {ONE}, then {ann}")
    assert found["structured_response"] == Person(name="Ann", age=31)
    for _ in range(3):
        found = await agent.run('call Person {"name": "Bob", "age": 8}')
        assert found["structured_response"] == Person(name="Bob", age=8)
    if "keep_all" not in keep:
        assert len(found["messages"]) == 4  # the result before, which no state stands for yet
    turns = await agent.law()
    assert turns[5].startswith(result("Returning structured response: name='Ann'"))


async def test_a_structured_answer_that_does_not_fit_is_asked_for_again(make_agent: MakeAgent):
    class Adult(Person):
        """A grown-up."""

        def model_post_init(self, context: Any) -> None:
            if self.age < 18:
                raise ValueError("too young")

    agent = make_agent(response_format=ToolStrategy(Adult))
    young, old = (f'call Adult {{"name": "Ann", "age": {age}}}' for age in (8, 31))
    found = await agent.run(f"{young}, then {old}")
    assert found["structured_response"].age == 31
    await agent.run(old)
    turns = await agent.law()
    assert "too young" in turns[3]


@pytest.mark.parametrize("keep", [{"keep_last": 0}, {"keep_all": True}], ids=["dropped", "kept"])
async def test_a_structured_answer_of_the_model_itself(make_agent: MakeAgent, keep: dict[str, Any]):
    agent = make_agent(response_format=ProviderStrategy(Person), keep=keep)
    found = await agent.run(f'call add {ONE}, then say {{"name":"Ann","age":31}}')
    assert found["structured_response"] == Person(name="Ann", age=31)
    found = await agent.run('say {"name":"Bob","age":8}')
    assert found["structured_response"] == Person(name="Bob", age=8)
    turns = await agent.law()
    assert turns[2:5] == [CALL_ONE, result("3"), said('{"name":"Ann","age":31}')]


async def test_a_tool_that_returns_directly_leaves_its_result_to_the_next_turn(
    make_agent: MakeAgent,
):
    @tool(return_direct=True)
    def direct(a: int) -> str:
        """Returns directly."""
        return str(a)

    agent = make_agent(tools=[direct])
    await agent.say("My name is Ann.")
    assert await agent.say('call direct {"a": 5}') == "5"
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns[4:6] == [called(("direct", {"a": 5})), result("5")]


@either_order
async def test_an_answer_that_a_middleware_rewrites_is_read_as_rewritten(
    make_agent: MakeAgent, last: bool
):
    agent = make_agent(_Rewrite(), last=last)
    assert await agent.say("My name is Ann.") == "That was round 1."
    await agent.say(f"call add {ONE}, then and now?")
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns[2] == said("That was round 1.")


async def test_an_answer_that_lost_its_reference_behind_ours_is_read_as_a_message(
    make_agent: MakeAgent,
):
    agent = make_agent(_MadeAnew(), last=False, twin=False)
    await agent.say("My name is Ann.")
    assert await agent.say("who am I?") == "You are Ann."
    assert await agent.ref() is None
    assert agent.reads()[-1] == "\n\n".join(
        [
            str(agent.block()),
            user("My name is Ann."),
            said("That was turn 1."),
            user("who am I?"),
            "Assistant:",
        ]
    )


@either_order
async def test_the_first_of_two_answers(make_agent: MakeAgent, last: bool):
    agent = make_agent(_FirstOfTwo(), last=last)
    await agent.say("My name is Ann.")
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert len(turns) == 5


@pytest.mark.parametrize("keep", [{"keep_last": 0}, {"keep_all": True}], ids=["dropped", "kept"])
async def test_a_call_that_was_cut_off_is_answered_by_the_graph_and_told_once(
    make_agent: MakeAgent, make_text: MakeText, keep: dict[str, Any]
):
    agent = make_agent(make_chat=lambda: make_text(max_tokens=40), keep=keep)
    await agent.say("My name is Ann.")
    await agent.say('call add {"a": 333333333333333, "b": 4}')
    assert await agent.say("who am I?") == "You are Ann."
    await agent.say("and now?")
    assert agent.twin is not None
    _, *plain, _ = _without_call_ids(agent.twin.reads()[-1]).split("\n\n")
    told = _without_call_ids("\n\n".join(await agent.heard())).split("\n\n")
    assert told == [*plain, said("That was turn 4.")]
    assert told[3] == said('```json\n{"name":"add","arguments":{"a":3')
    if "keep_all" not in keep:
        assert len((await agent.state()).values["messages"]) == 2


def _without_call_ids(text: str) -> str:
    """LangChain tells the model the id of a call that was cut off."""
    return re.sub("call_[0-9a-f]+", "call", text)


async def test_a_system_prompt_that_changes_is_read_behind_the_state_with_a_warning(
    make_agent: MakeAgent,
):
    days = ["Monday", "Monday", "Tuesday"]

    @dynamic_prompt
    def today(request: Any) -> str:
        return f"It is {days[len(heard)]}."

    heard: list[str] = []
    agent = make_agent(today, tools=[], system=None, twin=False)
    await agent.say("My name is Ann.")
    heard.append("1")
    await agent.say("and now?")
    heard.append("2")
    with pytest.warns(UserWarning, match="they are read now, as new text behind it"):
        await agent.say("who am I?")
    await agent.expect(
        "System: It is Monday.",
        user("My name is Ann."),
        said("That was turn 1."),
        user("and now?"),
        said("That was turn 2."),
        "System: It is Tuesday.",
        user("who am I?"),
        said("You are Ann."),
    )


@either_order
@pytest.mark.parametrize("keep", [{"keep_last": 0}, {"keep_all": True}], ids=["dropped", "kept"])
async def test_another_model_of_ours_that_answers_a_turn_between(
    make_agent: MakeAgent, make_text: MakeText, last: bool, keep: dict[str, Any]
):
    agent = make_agent(_Route(make_text(name="other")), last=last, keep=keep, twin=False)
    await agent.say("My name is Ann.")
    if "keep_all" not in keep:
        await agent.say("and now?")
        with pytest.raises((StateNotFound, StateMismatch)):
            await agent.say("other, who am I?")
        return
    with pytest.warns(UserWarning, match="read again"):
        assert await agent.say("other, who am I?") == "That was turn 2."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert await agent.say("who am I?") == "You are Ann."
    assert (await agent.heard())[2:] == [
        user("other, who am I?"),
        said("That was turn 2."),
        user("who am I?"),
        said("You are Ann."),
    ]
