"""OpenAI's messages as LangChain's: what is read, and what is refused by its name."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.messages import to_langchain

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


def one(**message):
    return to_langchain([message])[0]


def test_each_role_becomes_its_kind_of_message():
    read = to_langchain(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": "Hi.", "name": "Bob"},
            {"role": "assistant", "content": "Hello."},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ]
    )
    assert [type(each) for each in read] == [
        *(SystemMessage, SystemMessage, HumanMessage, AIMessage, ToolMessage)
    ]
    assert [each.content for each in read] == ["Be brief.", "In English.", "Hi.", "Hello.", "3"]
    assert read[2].name == "Bob"
    assert isinstance(read[4], ToolMessage)
    assert read[4].tool_call_id == "c1"


def test_parts_of_text_are_one_text():
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "morning."}]
    assert one(role="user", content=parts).content == "Good morning."


def test_an_answer_comes_back_with_its_calls_and_its_thought():
    read = one(role="assistant", content=None, tool_calls=[CALL], reasoning_content="Hm.")
    assert read.content == ""
    assert [(c["name"], c["args"], c["id"]) for c in read.tool_calls] == [("add", {"a": 1}, "c1")]
    assert read.additional_kwargs == {"reasoning_content": "Hm."}


def test_a_call_that_was_cut_off_comes_back_as_it_was():
    cut = {**CALL, "function": {"name": "add", "arguments": '{"a":'}}
    read = one(role="assistant", content=None, tool_calls=[CALL, cut])
    assert [call["args"] for call in read.invalid_tool_calls] == ['{"a":']
    assert len(read.tool_calls) == 1


def test_a_refusal_is_what_was_said():
    assert one(role="assistant", content=None, refusal="No.").content == "No."
    parts = [{"type": "refusal", "refusal": "No."}]
    assert one(role="assistant", content=parts).content == "No."


def test_what_a_client_sends_back_of_an_answer_is_let_pass():
    sent: dict = {"content": "Hi.", "refusal": None, "annotations": [], "audio": None}
    assert one(role="assistant", function_call=None, tool_calls=None, **sent).content == "Hi."


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hi.", "messages[0]"),
        ({"content": "Hi."}, "messages[0].role"),
        ({"role": "function", "name": "f", "content": "3"}, "messages[0].role"),
        ({"role": ["user"], "content": "Hi."}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": "Hi.", "name": 3}, "messages[0].name"),
        ({"role": "user", "content": ["Hi."]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
            "messages[0].content[1].type",
        ),
        ({"role": "user", "content": "Hi.", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "Hi.", "rwkv_state": "rwkv1-0"}, "messages[0].rwkv_state"),
        ({"role": "tool", "content": "3"}, "messages[0].tool_call_id"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
        ({"role": "assistant", "tool_calls": "add"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [3]}, "messages[0].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
            "messages[0].tool_calls[0].type",
        ),
        (
            {"role": "assistant", "content": "", "reasoning_content": 3},
            "messages[0].reasoning_content",
        ),
    ],
)
def test_what_cannot_be_read_is_named(message, param):
    with pytest.raises(ApiError) as caught:
        to_langchain([message])
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


def test_no_messages_are_an_error():
    with pytest.raises(ApiError, match="messages is empty"):
        to_langchain([])
