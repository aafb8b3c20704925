"""Thoughts: asked for, told apart, counted, and not remembered."""

from __future__ import annotations

import functools
import operator

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from langchain_rwkv_state.prompt.template import WorldTemplate
from tests.helpers.scripted_chat import WORLD, ScriptedChat, in_bytes

THOUGHT = ">Hm.\n\nSeven\ntimes 13.</think>\nNo: 7 times 13.\n\nAssistant answers."
SAID = "No: 7 times 13.\n\nAssistant answers."


@pytest.fixture
def g1():
    scripted = ScriptedChat()
    yield scripted
    scripted.close()


def prompt_of(scripted, messages, **options):
    return WORLD.decode(scripted.chat.plan_call(messages, None, options)[1].request.prompt)


@pytest.mark.parametrize(
    ("reasoning", "end"),
    [
        (None, "User: Prime?\n\nAssistant:"),
        (False, "User: Prime?\n\nAssistant: <think></think"),
        (True, "User: Prime?\n\nAssistant: <think"),
        ("low", "User: Prime? (think a bit)\n\nAssistant: <think"),
        ("medium", "User: Prime? (think)\n\nAssistant: <think"),
        ("high", "User: Prime? (think a lot)\n\nAssistant: <think"),
    ],
)
def test_the_prompt_is_that_of_the_models_makers(g1, reasoning, end):
    said = [SystemMessage("Be kind."), HumanMessage("Prime?")]
    assert prompt_of(g1, said, reasoning=reasoning) == f"System: Be kind.\n\n{end}"


def test_behind_a_tools_result_there_is_no_effort_to_append(g1):
    call = {"name": "f", "args": {}, "id": "1"}
    said = [
        HumanMessage("Go."),
        AIMessage("", tool_calls=[call]),
        ToolMessage("3", tool_call_id="1"),
    ]
    assert prompt_of(g1, said, reasoning="low").endswith(
        "User: Function output:\n3\n\nAssistant: <think"
    )


@pytest.mark.parametrize("spelling", [WORLD.encode, in_bytes])
@pytest.mark.parametrize("level", [True, "low"])
def test_a_thought_stands_apart_and_is_in_no_state(g1, spelling, level):
    g1.will_say(spelling(THOUGHT), reasoning=level)
    answer = g1.chat.invoke("Hi.", reasoning=level)
    assert answer.content == SAID
    assert answer.additional_kwargs["reasoning_content"] == "Hm.\n\nSeven\ntimes 13."
    blocks = [(block["type"], block.get("reasoning")) for block in answer.content_blocks]
    assert blocks == [("reasoning", "Hm.\n\nSeven\ntimes 13."), ("text", None)]
    usage = answer.usage_metadata
    assert 0 < usage["output_token_details"]["reasoning"] < usage["output_tokens"]
    bare = g1.chat.prefill([HumanMessage("Hi."), AIMessage(SAID)])
    assert answer.response_metadata[STATE_KEY] == bare
    g1.will_say(" Yes.", [HumanMessage("Hi."), AIMessage(SAID), HumanMessage("Sure?")])
    again = [marker(answer.response_metadata[STATE_KEY]), HumanMessage("Sure?")]
    assert g1.chat.invoke(again).content == "Yes."


def test_a_thought_that_is_kept_is_in_the_state_and_read_from_messages(g1):
    g1.will_say(THOUGHT, reasoning=True, keep_reasoning=True)
    answer = g1.chat.invoke("Hi.", reasoning=True, keep_reasoning=True)
    segments = g1.chat.loaded().template.segments([answer], start=False, thoughts=True)
    assert segments[0].text == f"<think>Hm.\n\nSeven\ntimes 13.</think>\n{SAID}"
    state = g1.chat.store.get(answer.response_metadata[STATE_KEY])
    said = g1.chat.loaded().template.segments(
        [HumanMessage("Hi."), answer], start=True, thoughts=True
    )
    assert state.n_tokens == sum(len(segment.ids) for segment in said)


def test_a_thought_is_streamed_apart(g1):
    g1.will_say(in_bytes(THOUGHT), reasoning=True)
    chunks = list(g1.chat.stream("Hi.", reasoning=True))
    whole = functools.reduce(operator.add, chunks)
    assert whole.content == SAID
    assert whole.additional_kwargs["reasoning_content"] == "Hm.\n\nSeven\ntimes 13."
    for chunk in chunks:
        assert "<" not in chunk.content
        assert not ("reasoning_content" in chunk.additional_kwargs and chunk.content)
    assert len([c for c in chunks if "reasoning_content" in c.additional_kwargs]) > 5


def test_a_thought_is_a_block_where_content_is_blocks():
    scripted = ScriptedChat(output_version="v1")
    scripted.will_say(THOUGHT, reasoning=True)
    answer = scripted.chat.invoke("Hi.", reasoning=True)
    chunks = list(scripted.chat.stream("Hi.", reasoning=True))
    for message in (answer, functools.reduce(operator.add, chunks)):
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
        assert message.text == SAID
    with pytest.raises(ValueError, match="of the model itself"):
        scripted.chat.invoke("Hi.", output_version="v1")
    scripted.close()


def test_a_thought_that_is_cut_off_leaves_no_text(g1):
    g1.will_say(in_bytes(THOUGHT), reasoning=True)
    for most in range(1, len(THOUGHT.partition("No:")[0])):
        answer = g1.chat.invoke("Hi.", reasoning=True, max_tokens=most)
        assert answer.response_metadata["finish_reason"] == "length"
        assert answer.content == ""
        assert "Hm.\n\nSeven\ntimes 13.".startswith(
            answer.additional_kwargs.get("reasoning_content", "")
        )
    bare = g1.chat.prefill([HumanMessage("Hi."), AIMessage("")])
    assert answer.response_metadata[STATE_KEY] == bare


@pytest.mark.parametrize("said", ["> Yes.", ">\n\nYes.", " Yes."])
def test_a_thought_that_is_switched_off_leaves_no_trace(g1, said):
    g1.will_say(said, reasoning=False)
    answer = g1.chat.invoke("Hi.", reasoning=False)
    assert answer.content == "Yes."
    assert answer.additional_kwargs == {}
    assert "output_token_details" not in answer.usage_metadata
    assert answer.response_metadata[STATE_KEY] == g1.chat.prefill(
        [HumanMessage("Hi."), AIMessage("Yes.")]
    )


@pytest.mark.parametrize("spelling", [WORLD.encode, in_bytes])
def test_a_thought_that_nobody_asked_for_is_told_apart_too(g1, spelling):
    g1.will_say(spelling(" <think>Hm.</think>\nYes."))
    answer = g1.chat.invoke("Hi.")
    assert answer.content == "Yes."
    assert answer.additional_kwargs["reasoning_content"] == "Hm."
    bare = g1.chat.prefill([HumanMessage("Hi."), AIMessage("Yes.")])
    assert answer.response_metadata[STATE_KEY] == bare
    streamed = functools.reduce(operator.add, g1.chat.stream("Hi."))
    assert (streamed.content, streamed.additional_kwargs["reasoning_content"]) == ("Yes.", "Hm.")
    for most in range(1, 12):
        assert "<" not in g1.chat.invoke("Hi.", max_tokens=most).content


@pytest.mark.parametrize("said", ["<thin", "<thing> it is", "Well, <think>Hm.</think>", "<"])
def test_what_is_no_thought_is_text(g1, said):
    g1.will_say(in_bytes(f" {said}"))
    answer = g1.chat.invoke("Hi.")
    assert (answer.content, answer.additional_kwargs) == (said, {})
    assert "".join(chunk.content for chunk in g1.chat.stream("Hi.")) == said


def test_prefill_reads_the_thoughts_that_are_kept():
    scripted = ScriptedChat(keep_reasoning=True)
    scripted.will_say(THOUGHT, reasoning=True)
    answer = scripted.chat.invoke("Hi.", reasoning=True)
    ref = scripted.chat.prefill([HumanMessage("Hi."), answer])
    assert answer.response_metadata[STATE_KEY] == ref
    scripted.close()


def test_the_models_own_setting_holds_and_a_call_overrides_it():
    scripted = ScriptedChat(reasoning="high")
    assert prompt_of(scripted, [HumanMessage("Hi.")]).endswith("(think a lot)\n\nAssistant: <think")
    assert prompt_of(scripted, [HumanMessage("Hi.")], reasoning=True).endswith(
        "Hi.\n\nAssistant: <think"
    )
    scripted.close()


@pytest.mark.parametrize("value", ["much", 3, "True", ""])
def test_a_setting_that_there_is_not_is_an_error(g1, value):
    with pytest.raises(ValueError, match="'low', 'medium' or 'high'"):
        g1.chat.invoke("Hi.", reasoning=value)
    with pytest.raises(ValueError, match="'low', 'medium' or 'high'"):
        ScriptedChat(reasoning=value)


def test_a_model_that_does_not_think_says_so():
    scripted = ScriptedChat(WorldTemplate)
    with pytest.raises(ValueError, match=r"reasoning=True.*'world'"):
        scripted.chat.invoke("Hi.", reasoning=True)
    scripted.will_say(" Hello.")
    assert scripted.chat.invoke("Hi.", reasoning=False).content == "Hello."
    scripted.close()


class TestContinued:
    """A last message that is an answer's beginning."""

    @pytest.mark.parametrize("spelling", [WORLD.encode, in_bytes])
    def test_is_the_beginning_of_the_answer(self, g1, spelling):
        given = [HumanMessage("Hi."), AIMessage("The cap")]
        g1.will_say(spelling("ital is\n\nBern. "), given)
        answer = g1.chat.invoke(given)
        assert answer.content == "The capital is\n\nBern."
        whole = g1.chat.prefill([HumanMessage("Hi."), AIMessage(answer.content)])
        assert answer.response_metadata[STATE_KEY] == whole
        chunks = list(g1.chat.stream(given))
        assert "".join(chunk.content for chunk in chunks) == answer.content

    def test_leaves_no_place_for_a_thought(self, g1):
        with pytest.raises(ValueError, match="leave one of them out"):
            g1.chat.invoke([HumanMessage("Hi."), AIMessage("The")], reasoning=True)
        given = [HumanMessage("Hi."), AIMessage("")]
        assert prompt_of(g1, given) == "User: Hi.\n\nAssistant:"
