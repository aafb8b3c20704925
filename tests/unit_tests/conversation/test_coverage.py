import copy
import itertools
import json
import warnings
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_rwkv_state.conversation.coverage import COVERED_MAX, DROPPED_MAX, Coverage
from langchain_rwkv_state.errors import MarkerError
from langchain_rwkv_state.prompt.markers import STATE_KEY

CALL = {"name": "add", "args": {}, "id": "1"}
BROKEN = {"name": "add", "args": "{", "id": "1", "error": None}


def ref(number):
    return f"rwkv1-{number:064x}"


def turn(number):
    return [HumanMessage(f"question {number}"), AIMessage(f"answer {number}")]


def began(coverage, held):
    """A turn of a thread begins with the last of its messages, which then has an id."""
    held[-1] = held[-1].model_copy(update={"id": f"id {len(held)} of {held[-1].text}"})
    return replace(coverage, ids=(held[-1].id,))


def answered(coverage, held, answer, number):
    """A thread's answer names its state, which a client's copy of it does not."""
    answer = answer.model_copy(update={"response_metadata": {STATE_KEY: ref(number)}})
    coverage = coverage.and_answered(held, answer, ref(number))
    held.append(answer)
    return coverage


def told(n_turns, *, keep_last=0):
    """A thread that was told turns, and dropped what it may at the beginning of each."""
    coverage, held = Coverage(), list[BaseMessage]()
    for number in range(n_turns):
        coverage, dropped = coverage.moved_on(held, keep_last=keep_last)
        question, answer = turn(number)
        held = [*held[dropped:], question]
        coverage = began(coverage, held)
        coverage = answered(coverage, held, answer, number)
    return coverage, held


def standing(coverage, messages):
    return [(one.count, one.ref) for one in coverage.standing(messages)]


def test_a_new_thread_is_covered_by_nothing():
    assert standing(Coverage.of(None), turn(0)) == [(0, None)]


def test_an_answer_is_covered_with_all_before_it():
    question, answer = turn(0)
    coverage = Coverage().and_answered([question], answer, ref(0))
    assert standing(coverage, [question, answer, HumanMessage("more")]) == [(2, ref(0)), (0, None)]


@pytest.mark.parametrize("place", [0, 1])
def test_what_was_edited_is_not(place):
    coverage, held = told(1)
    held[place] = type(held[place])("edited")
    assert standing(coverage, held) == [(0, None)]


def test_neither_is_what_was_removed_or_swapped():
    coverage, held = told(1)
    assert standing(coverage, held[1:]) == [(0, None)]
    assert standing(coverage, held[::-1]) == [(0, None)]


def test_a_call_of_a_tool_that_was_edited_is_not():
    call = {"name": "f", "args": {"x": 1}, "id": "1"}
    asks, says = HumanMessage("go"), AIMessage("", tool_calls=[call])
    coverage = Coverage().and_answered([asks], says, ref(0))
    assert standing(coverage, [asks, says])[0] == (2, ref(0))
    edited = AIMessage("", tool_calls=[{**call, "args": {"x": 2}}])
    assert standing(coverage, [asks, edited]) == [(0, None)]
    again = AIMessage("", tool_calls=[{**call, "id": "2"}])
    assert standing(coverage, [asks, again])[0] == (2, ref(0))


@pytest.mark.parametrize(
    ("held", "edited"),
    [
        (ToolMessage("3", tool_call_id="1"), ToolMessage("3", tool_call_id="1", status="error")),
        (ChatMessage(content="Yes.", role="user"), ChatMessage(content="Yes.", role="critic")),
        (AIMessage("", invalid_tool_calls=[BROKEN]), AIMessage("")),
    ],
    ids=["a result that failed", "another speaker", "a call that was cut off"],
)
def test_neither_is_what_reads_otherwise_with_the_same_words(held, edited):
    coverage = Coverage().and_answered([held], AIMessage("Fine."), ref(0))
    assert standing(coverage, [held, AIMessage("Fine.")])[0] == (2, ref(0))
    assert standing(coverage, [edited, AIMessage("Fine.")]) == [(0, None)]


def test_neither_ids_nor_names_nor_metadata_count():
    coverage, held = told(1)
    other = [held[0].model_copy(update={"id": "x"}), held[1].model_copy(update={"name": "bot"})]
    assert standing(coverage, other)[0] == (2, ref(0))


def test_covered_messages_are_dropped_and_the_base_moves_on():
    coverage, held = told(1)
    moved, dropped = coverage.moved_on([*held, HumanMessage("next")], keep_last=0)
    assert dropped == 2
    assert standing(moved, [HumanMessage("next")]) == [(0, ref(0))]


def test_what_no_state_stands_for_is_never_dropped():
    coverage, held = told(1)
    held[1] = AIMessage("edited")
    assert coverage.moved_on(held, keep_last=0)[1] == 0


@pytest.mark.parametrize(("keep_last", "kept"), [(0, 0), (1, 2), (2, 2), (3, 4), (4, 4), (99, 10)])
def test_whole_steps_are_kept(keep_last, kept):
    coverage, held = told(5, keep_last=99)
    _, dropped = coverage.moved_on(held, keep_last=keep_last)
    assert len(held) - dropped == kept


def _called(number, **calls):
    question = HumanMessage(f"question {number}")
    return [question, AIMessage("", **calls)]


@pytest.mark.parametrize("calls", [{"tool_calls": [CALL]}, {"invalid_tool_calls": [BROKEN]}])
def test_a_call_stays_until_it_has_its_result(calls):
    coverage, held = told(1)
    question, call = _called(1, **calls)
    held = [*held, question]
    held, coverage = [*held, call], coverage.and_answered(held, call, ref(1))
    moved, dropped = coverage.moved_on([*held, HumanMessage("more")], keep_last=0)
    assert dropped == 2
    assert standing(moved, [question, call]) == [(2, ref(1)), (0, ref(0))]
    result = ToolMessage("3", tool_call_id="1")
    assert coverage.moved_on([*held, result, HumanMessage("more")], keep_last=0)[1] == 4


def test_what_is_kept_begins_with_no_result_as_long_as_there_is_another_place():
    coverage, held = told(1)
    question, call = _called(1, tool_calls=[CALL])
    coverage = coverage.and_answered([*held, question], call, ref(1))
    held = [*held, question, call, ToolMessage("3", tool_call_id="1")]
    coverage = coverage.and_answered(held, AIMessage("It is 3."), ref(2))
    held.append(AIMessage("It is 3."))
    assert [coverage.moved_on(held, keep_last=n)[1] for n in (0, 1, 2, 3)] == [6, 2, 2, 2]


def test_a_message_that_is_kept_and_edited_is_read_again_from_the_state_before_it():
    coverage, held = told(5, keep_last=4)
    held[-1] = AIMessage("edited")
    assert standing(coverage, held)[0] == (len(held) - 2, ref(3))


def test_the_field_is_small_and_survives_json():
    coverage, held = told(200)
    field = coverage.to_field()
    assert len(json.dumps(field)) < 600
    again = Coverage.of(json.loads(json.dumps(field)))
    assert again == coverage
    assert standing(again, held)[0] == (2, ref(199))


def test_of_a_long_transcript_the_states_lie_the_farther_apart_the_older_they_are():
    coverage, held = told(100, keep_last=10_000)
    places = [count for count, _ in standing(coverage, held)]
    assert len(places) == COVERED_MAX
    assert places[0] == 200
    assert places[-1] == 0
    for older, newer in itertools.pairwise(places[::-1]):
        assert newer - older <= max(2, (200 - older) * 0.6)


@pytest.mark.parametrize("keep_last", [10, 60])
def test_a_thread_that_keeps_much_is_bounded(keep_last):
    _, held = told(150, keep_last=keep_last)
    assert keep_last <= len(held) <= 2 * keep_last


FIELD = told(2)[0].to_field()


@pytest.mark.parametrize(
    "field",
    [
        "text",
        [],
        {},
        {"covered": [], "dropped": ""},
        {**FIELD, "covered": [[0, "not a reference", "0"]]},
        {**FIELD, "covered": [[1, None, "0"]]},
        {**FIELD, "covered": [[0, None, "0"]]},
        {**FIELD, "covered": [["0", None, "0"]]},
        {**FIELD, "covered": [[0, None]]},
        {**FIELD, "covered": [[0, None, 7]]},
        {**FIELD, "covered": 3},
        {**FIELD, "dropped": 3},
        {**FIELD, "dropped": "not base64"},
        {**FIELD, "dropped": None},
        {**FIELD, "ids": 3},
        {**FIELD, "ids": [3]},
        {name: FIELD[name] for name in ("covered", "dropped")},
    ],
)
def test_a_field_that_somebody_else_wrote_is_refused(field):
    with pytest.raises(MarkerError, match="rwkv_state"):
        Coverage.of(field)


# -- clients that send the thread once more ------------------------------------------------------


def resent(n_turns):
    return list(itertools.chain.from_iterable(turn(number) for number in range(n_turns)))


@pytest.mark.parametrize("n_turns", [1, 2, 5, 11, 13, 60])
def test_a_transcript_without_ids_is_recognised(n_turns):
    coverage, held = told(n_turns)
    new = HumanMessage("next")
    assert coverage.without_repeats([*held, *resent(n_turns), new]) == [*held, new]


@pytest.mark.parametrize("n_turns", [2, 5, 11, 14, 60])
def test_so_is_one_whose_last_turn_stayed_in_its_place(n_turns):
    coverage, held = told(n_turns)
    new = HumanMessage("next")
    assert coverage.without_repeats([*held, *resent(n_turns - 1), new]) == [*held, new]


def test_so_is_a_window_of_it():
    coverage, held = told(9)
    new = HumanMessage("next")
    assert coverage.without_repeats([*held, *resent(9)[-4:], new]) == [*held, new]


def test_so_is_one_without_the_calls_of_tools():
    asks, says = HumanMessage("sum"), AIMessage("It is 3.")
    call = AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])
    result = ToolMessage("3", tool_call_id="1")
    coverage = Coverage().and_answered([asks], call, ref(1))
    coverage = coverage.and_answered([asks, call, result], says, ref(2))
    held, new = [asks, call, result, says], HumanMessage("next")
    assert coverage.without_repeats([*held, asks, says, new]) == [*held, new]
    moved, _ = coverage.moved_on(held, keep_last=0)
    assert moved.without_repeats([asks, says, new]) == [new]


NEXT = HumanMessage("next")


@pytest.mark.parametrize("keep_last", [0, 4])
@pytest.mark.parametrize("n_sent", [0, 1], ids=["as it was", "with a question more"])
def test_so_is_one_after_a_question_that_got_no_answer(keep_last, n_sent):
    coverage, held = told(3, keep_last=keep_last)
    coverage, dropped = coverage.moved_on(held, keep_last=keep_last)
    held, more = [*held[dropped:], turn(3)[0]], [NEXT] * n_sent
    coverage = began(coverage, held)
    assert coverage.without_repeats([*held, *resent(3), turn(3)[0], *more]) == [*held, *more]


@pytest.mark.parametrize("n_turns", [3, 60])
def test_what_got_no_answer_stays_where_it_is_sent_with_its_id(n_turns):
    coverage, held = told(n_turns)
    coverage, _ = coverage.moved_on(held, keep_last=0)
    held = [turn(n_turns)[0]]
    coverage = began(coverage, held)
    assert coverage.without_repeats([*held, *resent(n_turns), NEXT]) == [*held, NEXT]


@pytest.mark.parametrize("n_turns", [3, 60])
def test_so_does_what_is_sent_in_front_of_all(n_turns):
    coverage, held = told(n_turns)
    note = SystemMessage("Today is Monday.")
    sent = [note, *resent(n_turns), NEXT]
    assert coverage.without_repeats([*held, *sent]) == [*held, note, NEXT]


def test_so_is_one_whose_last_turn_ended_within_a_call():
    coverage, held = told(2)
    coverage, _ = coverage.moved_on(held, keep_last=0)
    question, call = _called(2, tool_calls=[CALL])
    coverage = coverage.and_answered([question], call, ref(2))
    for held in ([question, call], [question, call, ToolMessage("3", tool_call_id="1")]):
        assert coverage.without_repeats([*held, *resent(2), question, NEXT]) == [*held, NEXT]


def test_so_is_one_whose_turns_all_end_with_a_result():
    coverage, held, whole = Coverage(), list[BaseMessage](), list[BaseMessage]()
    for number in range(3):
        asks, call = _called(number, tool_calls=[CALL])
        result = ToolMessage("3", tool_call_id="1")
        assert coverage.without_repeats([*held, *whole, asks]) == [*held, asks]
        coverage, dropped = coverage.moved_on([*held, asks], keep_last=0)
        held = [*held[dropped:], asks]
        coverage = began(coverage, held)
        coverage = answered(coverage, held, call, number)
        held.append(result)
        whole = [*whole, asks, call, result]


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("n_dropped", [0, 2])
def test_so_is_one_that_was_edited_in_the_thread(place, n_dropped):
    coverage, held = told(3, keep_last=99)
    dropped = held[:n_dropped]
    if n_dropped:
        coverage, _ = coverage.moved_on(held, keep_last=4)
        held = held[n_dropped:]
        place = min(place, 3)
    held[place] = held[place].model_copy(update={"content": "edited"})
    sent = [type(message)(message.content) for message in (*dropped, *held)]
    assert coverage.without_repeats([*held, *sent, NEXT]) == [*held, NEXT]


@pytest.mark.filterwarnings("ignore:Some of these messages")
@pytest.mark.parametrize("place", range(6))
def test_a_turn_that_was_told_twice_stays_when_another_is_edited(place):
    asks, says = turn(0)
    coverage, held = Coverage(), list[BaseMessage]()
    for number in range(3):
        held.append(asks)
        coverage = answered(began(coverage, held), held, says, number)
    held[place] = held[place].model_copy(update={"content": "edited"})
    assert coverage.without_repeats([*held, NEXT]) == [*held, NEXT]


def test_an_answer_that_was_edited_to_say_what_one_before_it_says_stays():
    coverage, held = Coverage(), list[BaseMessage]()
    for number in range(2):
        question, answer = turn(number)
        held.append(question)
        coverage = began(coverage, held)
        answer.id = f"answer {number}"
        coverage = answered(coverage, held, answer, number)
        held[-1] = AIMessage("edited", id=answer.id)
    assert coverage.without_repeats([*held, NEXT]) == [*held, NEXT]


@pytest.mark.filterwarnings("ignore:Some of these messages")
def test_the_rest_of_an_edited_turn_stays_though_it_ends_like_the_turn_before():
    call, result = AIMessage("", tool_calls=[CALL]), ToolMessage("3", tool_call_id="1")
    asks, says = turn(0)
    coverage, held = Coverage(), list[BaseMessage]()
    for number in range(2):
        coverage, dropped = coverage.moved_on(held, keep_last=0)
        held = [*held[dropped:], asks]
        coverage = answered(began(coverage, held), held, call, 2 * number)
        held.append(result)
        coverage = answered(coverage, held, says, 2 * number + 1)
    assert coverage.without_repeats([*held[1:], NEXT]) == [*held[1:], NEXT]


@pytest.mark.filterwarnings("ignore:Some of these messages")
def test_a_call_that_was_told_twice_stays_when_its_answer_is_removed():
    call, result = AIMessage("", tool_calls=[CALL]), ToolMessage("3", tool_call_id="1")
    coverage, held = Coverage(), list[BaseMessage]()
    for number in range(2):
        held.append(turn(0)[0])
        coverage = answered(began(coverage, held), held, call, 2 * number)
        held.append(result)
        coverage = answered(coverage, held, AIMessage("It is 3."), 2 * number + 1)
    del held[3]
    assert coverage.without_repeats([*held, NEXT]) == [*held, NEXT]


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_turn_that_was_told_twice_stays_where_its_answer_was_rewritten(n_before):
    coverage, held = told(n_before)
    for number in range(9, 13):
        coverage, dropped = coverage.moved_on(held, keep_last=0)
        held = [*held[dropped:], HumanMessage("ask")]
        assert coverage.without_repeats(held) == held
        coverage = coverage.and_answered(held, AIMessage("raw"), ref(number))
        held.append(AIMessage("rewritten"))


def test_a_question_stays_that_is_asked_again_behind_the_same_answer():
    coverage, held = told(3)
    coverage, _ = coverage.moved_on(held, keep_last=0)
    again = [NEXT, turn(2)[1], NEXT]
    assert coverage.without_repeats(again) == again


def test_words_that_were_said_before_are_said_again():
    coverage, held = told(3)
    again = HumanMessage(held[0].content)
    assert coverage.without_repeats([*held, again]) == [*held, again]
    moved, dropped = coverage.moved_on(held, keep_last=0)
    assert moved.without_repeats([*held[dropped:], again])[-1] == again


def test_examples_that_come_back_at_each_turn_are_read_each_time():
    examples = [HumanMessage("2+2"), AIMessage("4")]
    asks, says = turn(0)
    coverage = Coverage().and_answered([*examples, asks], says, ref(0))
    held = [*examples, asks, says]
    new = [*examples, HumanMessage("next")]
    with pytest.warns(UserWarning, match="read again"):
        assert coverage.without_repeats([*held, *new]) == [*held, *new]


def test_another_branch_is_read_as_it_is_given_and_said_to_be():
    coverage, held = told(4)
    branch = [*resent(2), HumanMessage("another question")]
    with pytest.warns(UserWarning, match="checkpoint_id"):
        assert coverage.without_repeats([*held, *branch]) == [*held, *branch]


def test_only_the_last_of_the_dropped_messages_are_known():
    coverage, _ = told(200)
    assert len(coverage.dropped) == DROPPED_MAX


# -- the law -----------------------------------------------------------------------------------

TEXTS = st.sampled_from(["a", "b", "ok"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("turn"), TEXTS, TEXTS),
        st.tuples(st.just("edit"), st.integers(0, 20), TEXTS),
        st.tuples(st.just("remove"), st.integers(0, 20)),
        st.tuples(st.just("system"), TEXTS),
        st.tuples(st.just("drop"), st.integers(0, 3)),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_a_state_only_ever_stands_for_what_it_was_read_from(events):
    """States are lists of what was read, so that each can be held against what it stands for."""
    coverage, held = Coverage(), list[BaseMessage]()
    states: dict[str | None, list[BaseMessage]] = {None: []}
    gone: list[BaseMessage] = []  # what the base stands for
    for number, event in enumerate(events):
        match event:
            case ("turn", asks, says):
                held.append(HumanMessage(asks))
                base = next(coverage.standing(held))
                answer = AIMessage(says)
                read = [*states[base.ref], *held[base.count :], answer]
                states[ref(number)] = read
                coverage = coverage.and_answered(held, answer, ref(number))
                held.append(answer)
            case ("edit", place, text) if held:
                place %= len(held)
                held[place] = held[place].model_copy(update={"content": text})
            case ("remove", place) if held:
                del held[place % len(held)]
            case ("system", text):
                held.append(SystemMessage(text))
            case ("drop", keep_last):
                coverage, dropped = coverage.moved_on(held, keep_last=keep_last)
                gone, held = [*gone, *held[:dropped]], held[dropped:]
        coverage = Coverage.of(copy.deepcopy(coverage.to_field()))
        for one in coverage.standing(held):
            stood_for = [(m.type, m.content) for m in (*gone, *held[: one.count])]
            assert [(m.type, m.content) for m in states[one.ref]] == stood_for


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), st.integers(0, 4))
def test_a_client_that_resends_all_changes_nothing(turns, keep_last):
    coverage, held, whole = Coverage(), list[BaseMessage](), list[BaseMessage]()
    for number, (asks, says) in enumerate(turns):
        new = HumanMessage(asks)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            talk = coverage.without_repeats([*held, *map(copy.copy, whole), new])
        assert [m.content for m in talk] == [m.content for m in (*held, new)]
        coverage, dropped = coverage.moved_on(talk, keep_last=keep_last)
        held = talk[dropped:]
        answer = AIMessage(says)
        coverage = coverage.and_answered(held, answer, ref(number))
        held.append(answer)
        whole += [new, answer]
