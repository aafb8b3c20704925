import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    merge_message_runs,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

from langchain_rwkv_state.errors import MarkerError
from langchain_rwkv_state.prompt.markers import (
    MARKER_TEXT,
    NEW,
    STATE_KEY,
    TURN_KEY,
    UNREAD_KEY,
    InputError,
    Mark,
    is_marker,
    marker,
    marker_remainder,
    message_from_json,
    message_to_json,
    messages_digest,
    read_marker,
    text_digest,
    to_messages,
    without_markers,
)

REF = "rwkv1-" + "0123456789abcdef" * 4
OTHER = "rwkv1-" + "f" * 64
TURN = "0" * 31 + "a"


def test_a_marker_says_what_it_was_made_of():
    assert read_marker(marker(REF)) == Mark(REF)
    assert read_marker(marker(None)) == Mark(None)
    assert read_marker(marker(REF, turn_id=TURN, n_unread=3)) == Mark(REF, TURN, 3)


def test_a_marker_is_a_system_message_with_a_fixed_text():
    for made in (marker(REF), marker(None), marker(OTHER, turn_id=TURN, n_unread=1)):
        assert type(made) is SystemMessage
        assert made.content == MARKER_TEXT
        assert is_marker(made)
    assert REF not in str(marker(REF).content)


@pytest.mark.parametrize(
    "wrong", ["", "new", "rwkv1-", REF.upper(), REF[:-1], REF + "0", REF + "\n", "rwkv2" + REF[5:]]
)
def test_a_marker_is_made_of_a_reference_only(wrong):
    with pytest.raises(MarkerError, match="not a state reference") as error:
        marker(wrong)
    assert repr(wrong) in str(error.value)


@given(st.text())
def test_no_text_but_a_reference_passes_for_one(text):
    with pytest.raises(MarkerError):
        marker(text)
    forged = SystemMessage(MARKER_TEXT, additional_kwargs={STATE_KEY: text})
    if text != NEW:
        with pytest.raises(MarkerError):
            read_marker(forged)


@pytest.mark.parametrize("value", [None, 7, ["x"], {"ref": REF}, REF + REF, "newnew"])
def test_a_forged_marker_is_refused_with_its_value(value):
    forged = SystemMessage(MARKER_TEXT, additional_kwargs={STATE_KEY: value})
    assert is_marker(forged)
    with pytest.raises(MarkerError) as error:
        read_marker(forged)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("turn_id", [3, "", "x" * 32, TURN.upper(), TURN + "0"])
def test_a_malformed_turn_id_is_refused(turn_id):
    forged = SystemMessage("", additional_kwargs={STATE_KEY: REF, TURN_KEY: turn_id})
    with pytest.raises(MarkerError, match="turn id"):
        read_marker(forged)


@pytest.mark.parametrize("count", [3, "-1", "x", "", "1234567", None])
def test_a_malformed_count_of_unread_messages_is_refused(count):
    extra = {STATE_KEY: REF, TURN_KEY: TURN, UNREAD_KEY: count}
    with pytest.raises(MarkerError, match="unread"):
        read_marker(SystemMessage("", additional_kwargs=extra))


def test_only_a_system_message_is_a_marker():
    extra = {STATE_KEY: REF}
    assert not is_marker(HumanMessage(MARKER_TEXT, additional_kwargs=extra))
    assert not is_marker(AIMessage(MARKER_TEXT, additional_kwargs=extra))
    assert not is_marker(AIMessage("", response_metadata=extra))
    assert not is_marker(SystemMessage(MARKER_TEXT))


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
@pytest.mark.parametrize(
    "travel",
    [
        lambda message: pickle.loads(pickle.dumps(message)),
        lambda message: load(dumpd(message), allowed_objects="messages"),
        lambda message: messages_from_dict(json.loads(json.dumps([message_to_dict(message)])))[0],
        lambda message: message.model_copy(deep=True),
        lambda message: message_from_json(message_to_json(message)),
    ],
    ids=["pickle", "dumpd", "json", "copy", "unread"],
)
def test_a_marker_survives_every_way_messages_travel(travel):
    sent = marker(REF, turn_id=TURN, n_unread=2)
    received = travel(sent)
    assert is_marker(received)
    assert read_marker(received) == read_marker(sent)


def test_markers_are_left_out_whether_sound_or_not():
    forged = SystemMessage("x", additional_kwargs={STATE_KEY: "junk"})
    human, system = HumanMessage("hi"), SystemMessage("Be kind.")
    assert without_markers([system, marker(REF), human, forged]) == [system, human]


def test_text_joined_to_a_marker_is_told_apart_from_it():
    system, reminder = SystemMessage("Be kind."), SystemMessage("It rains.")
    for messages, expected in [
        ([system, marker(REF)], ("Be kind.", "")),
        ([marker(REF), reminder], ("", "It rains.")),
        ([system, marker(REF), reminder], ("Be kind.", "It rains.")),
        ([marker(REF)], ("", "")),
    ]:
        merged = merge_message_runs(messages)
        assert len(merged) == 1
        assert read_marker(merged[0]) == Mark(REF)
        assert marker_remainder(merged[0]) == expected


@pytest.mark.parametrize(
    ("first", "second"), [(REF, OTHER), (REF, REF), (None, None), (None, REF), (REF, None)]
)
def test_two_markers_merged_into_one_are_refused(first, second):
    [merged] = merge_message_runs([marker(first), marker(second)])
    with pytest.raises(MarkerError, match="merged"):
        read_marker(merged)


def test_every_input_of_a_chat_model_becomes_messages():
    human = HumanMessage("hi")
    assert to_messages("hi") == [human]
    assert to_messages(StringPromptValue(text="hi")) == [human]
    assert to_messages(ChatPromptValue(messages=[human])) == [human]
    assert to_messages([human]) == [human]
    assert to_messages([("system", "Be kind."), ("human", "hi")]) == [
        SystemMessage("Be kind."),
        human,
    ]
    assert to_messages([{"role": "user", "content": "hi"}]) == [human]


@given(st.text(), st.text(alphabet=" \n\t"))
def test_an_answer_is_recognised_with_or_without_space_around_it(text, space):
    assert text_digest(space + text + space) == text_digest(text)


@given(st.text(), st.text())
def test_two_answers_are_told_apart(one, other):
    assert (text_digest(one) == text_digest(other)) == (one.strip() == other.strip())


def test_lone_surrogates_have_a_digest():
    assert text_digest("\ud800") != text_digest("\ud801")


def test_messages_are_told_apart_by_type_text_and_border():
    digests = [
        messages_digest(messages)
        for messages in (
            [],
            [HumanMessage("a")],
            [AIMessage("a")],
            [HumanMessage("a"), HumanMessage("b")],
            [HumanMessage("ab")],
            [HumanMessage("b"), HumanMessage("a")],
            [HumanMessage("")],
        )
    ]
    assert len(set(digests)) == len(digests)
    assert messages_digest([HumanMessage("a", id="1")]) == messages_digest([HumanMessage("a")])


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage("Schöne Grüße, 你好 👋\n\n\x00"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1"}]),
        ToolMessage("3", tool_call_id="1"),
        HumanMessage([{"type": "text", "text": "in blocks"}], id="7", name="Ada"),
    ],
)
def test_an_unread_message_comes_back_as_it_was(message):
    assert message_from_json(message_to_json(message)) == message


def test_markers_are_not_overlooked_in_dicts():
    with pytest.raises(TypeError, match="convert_to_messages"):
        without_markers([{"role": "system", "content": "x"}])  # type: ignore[list-item]


def test_a_list_with_none_is_no_input():
    with pytest.raises(InputError, match="None in it"):
        to_messages([None])
