"""Planning a turn needs no model: a state here is a derivation with zeros around it."""

import warnings

import pytest
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    merge_message_runs,
)

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.conversation.filings import file_answer, filings_of
from langchain_rwkv_state.engine import Done
from langchain_rwkv_state.errors import (
    MarkerError,
    StateMismatch,
    StateNotFound,
    UnsupportedContentError,
)
from langchain_rwkv_state.prompt.markers import (
    Mark,
    hand_out,
    leading_system,
    marker,
    messages_digest,
    text_digest,
)
from langchain_rwkv_state.prompt.plan import (
    PromptPlan,
    ids_of,
    plan,
    plan_text,
    stage,
)
from langchain_rwkv_state.prompt.template import WorldTemplate
from langchain_rwkv_state.state import Fingerprint, RWKVState, StateLayout, zero_state
from langchain_rwkv_state.tokenizer import JsonTokenizer
from tests.helpers.checkpoints import write_tokenizer

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=32, head_size=32)
MODEL = Fingerprint("weights", "fp32", "tokenizer", "template")
NOWHERE = "rwkv1-" + "0" * 64
TURN = "a" * 32

BE_KIND = SystemMessage("Be kind.")
IT_RAINS = SystemMessage("It rains.")
HELLO = HumanMessage("Hello.")
HI = AIMessage("Hi.")
AGAIN = HumanMessage("Again.")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return WorldTemplate(JsonTokenizer(path))


class Model:
    """Reads without computing."""

    def __init__(self, template: WorldTemplate, store: MemoryStateStore) -> None:
        self.template, self.store = template, store
        self.zero = zero_state(LAYOUT, str(MODEL))

    def plan(self, *messages, answer: bool = True) -> PromptPlan:
        return plan(
            messages, template=self.template, store=self.store, zero=self.zero, answer=answer
        )

    def plan_text(self, text: str, *after) -> PromptPlan:
        return plan_text(
            text, after=after, template=self.template, store=self.store, zero=self.zero
        )

    def read(self, reading: PromptPlan, answer: str = "") -> Done:
        ids = self.template.answer_ids(answer)
        state = advanced(reading.base, (*reading.ids, *ids))
        at = [advanced(reading.base, reading.ids[:place]) for place in reading.checkpoints]
        return Done(
            text=answer,
            finish_reason="stop",
            state=state,
            prompt_tokens=len(reading.ids),
            answer_tokens=len(ids),
            answer_ids=tuple(ids),
            checkpoints=tuple(at),
        )

    def turn(self, *messages, answer: str = "Hi.") -> str:
        """Carries out a whole turn and returns the reference behind it."""
        reading = self.plan(*messages)
        return stage(reading, self.read(reading, answer), self.store)

    def ids(self, *messages, start: bool = False, answer: bool = True) -> tuple[int, ...]:
        return ids_of(self.template.segments(messages, start=start, answer=answer))


_turns: list[Mark] = []


def handed(ref: str | None, n_unread: int = 0):
    """The marker of a history's turn, which stays open."""
    _turns[:] = [Mark(ref, TURN, n_unread)]
    return hand_out(_turns[0])


def advanced(state: RWKVState, ids) -> RWKVState:
    return state.advanced({name: state.shared(name) for name in state}, ids)


@pytest.fixture
def model(template, store) -> Model:
    return Model(template, store)


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestWithoutAMarker:
    def test_everything_is_read_from_zero(self, model):
        reading = model.plan(BE_KIND, HELLO, HI, AGAIN)
        assert reading.base is model.zero
        assert reading.base_ref is None
        assert reading.ids == model.ids(BE_KIND, HELLO, HI, AGAIN, start=True)

    def test_nothing_to_read_is_an_error(self, model):
        with pytest.raises(ValueError, match="no messages"):
            model.plan()

    def test_an_image_is_refused(self, model):
        image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])
        with pytest.raises(UnsupportedContentError, match="image_url"):
            model.plan(image)

    def test_reading_without_an_answer_leaves_its_prompt_out(self, model):
        reading = model.plan(HELLO, answer=False)
        assert reading.ids == model.ids(HELLO, start=True, answer=False)


class TestAMarker:
    def test_stands_for_what_came_before(self, model, no_warnings):
        ref = model.turn(HELLO)
        reading = model.plan(marker(ref), AGAIN)
        assert reading.base_ref == ref
        assert reading.ids == model.ids(AGAIN)

    def test_and_increments_give_the_ids_of_the_transcript(self, model, no_warnings):
        first = model.turn(BE_KIND, HELLO)
        second = model.turn(marker(first), AGAIN, answer="Yes.")
        reading = model.plan(marker(second), HELLO)
        whole = model.plan(BE_KIND, HELLO, HI, AGAIN, AIMessage("Yes."), HELLO)
        read = advanced(reading.base, reading.ids)
        assert read.derivation == advanced(model.zero, whole.ids).derivation

    def test_of_a_new_conversation_changes_nothing(self, model, no_warnings):
        with_marker = model.plan(BE_KIND, marker(None), HELLO)
        assert with_marker.ids == model.plan(BE_KIND, HELLO).ids
        assert with_marker.base_ref is None

    def test_may_stand_behind_the_transcript_that_it_stands_for(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        reading = model.plan(BE_KIND, HELLO, HI, marker(ref), AGAIN)
        assert reading.ids == model.ids(AGAIN)
        later = stage(reading, model.read(reading, "Yes."), model.store)
        assert model.plan(BE_KIND, marker(later), HELLO).ids == model.ids(HELLO)

    def test_behind_another_transcript_reads_it_with_a_warning(self, model):
        ref = model.turn(BE_KIND, HELLO)
        with pytest.warns(UserWarning, match="before the state marker"):
            reading = model.plan(BE_KIND, AGAIN, HI, marker(ref), AGAIN)
        assert reading.ids == model.ids(BE_KIND, AGAIN, HI, AGAIN)

    def test_alone_asks_for_an_answer(self, model):
        ref = model.turn(HELLO)
        assert model.plan(marker(ref)).ids == model.ids()

    def test_alone_and_without_an_answer_reads_nothing(self, model):
        ref = model.turn(HELLO)
        assert model.plan(marker(ref), answer=False).ids == ()

    def test_whose_state_is_unknown_is_an_error(self, model):
        with pytest.raises(StateNotFound):
            model.plan(marker(NOWHERE), HELLO)

    @pytest.mark.parametrize("part", MODEL._fields)
    def test_of_another_model_is_an_error_that_names_both(self, model, store, part):
        other = MODEL._replace(**{part: "another"})
        ref = store.stage(zero_state(LAYOUT, str(other)))
        with pytest.raises(StateMismatch) as error:
            model.plan(marker(ref), HELLO)
        assert str(other) in str(error.value)
        assert str(MODEL) in str(error.value)


class TestTheBlockBeforeAMarker:
    def test_is_not_read_again(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        assert model.plan(BE_KIND, marker(ref), AGAIN).ids == model.ids(AGAIN)

    def test_may_be_missing(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        ref = model.turn(marker(ref), AGAIN)
        assert model.plan(BE_KIND, marker(ref), AGAIN).ids == model.ids(AGAIN)

    def test_that_changed_is_read_with_one_warning(self, model):
        ref = model.turn(BE_KIND, HELLO)
        with pytest.warns(UserWarning, match="before the state marker") as caught:
            reading = model.plan(IT_RAINS, marker(ref), AGAIN)
        assert len(caught) == 1
        assert reading.ids == model.ids(IT_RAINS, AGAIN)

    def test_that_changed_is_the_block_from_then_on(self, model):
        ref = model.turn(BE_KIND, HELLO)
        with pytest.warns(UserWarning, match="before the state marker"):
            ref = model.turn(IT_RAINS, marker(ref), AGAIN)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model.plan(IT_RAINS, marker(ref), AGAIN).ids == model.ids(AGAIN)
        with pytest.warns(UserWarning, match="before the state marker"):
            model.plan(BE_KIND, marker(ref), AGAIN)

    def test_that_is_new_is_read_with_a_warning(self, model):
        ref = model.turn(HELLO)
        with pytest.warns(UserWarning, match="before the state marker"):
            reading = model.plan(BE_KIND, marker(ref), AGAIN)
        assert reading.ids == model.ids(BE_KIND, AGAIN)

    def test_is_compared_by_what_a_model_reads_of_it(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        same = SystemMessage([{"type": "text", "text": " Be kind.\n"}], id="7")
        assert model.plan(same, marker(ref), AGAIN).ids == model.ids(AGAIN)

    def test_may_hold_examples(self, model, no_warnings):
        examples = [BE_KIND, HumanMessage("1+1?"), AIMessage("2")]
        ref = model.turn(*examples, marker(None), HELLO)
        assert model.plan(*examples, marker(ref), AGAIN).ids == model.ids(AGAIN)


class TestMergedSystemMessages:
    def merged(self, *messages):
        return merge_message_runs(list(messages))

    def test_text_before_the_marker_is_the_block(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        assert model.plan(*self.merged(BE_KIND, marker(ref), AGAIN)).ids == model.ids(AGAIN)
        with pytest.warns(UserWarning, match="before the state marker"):
            changed = model.plan(*self.merged(IT_RAINS, marker(ref), AGAIN))
        assert changed.ids == model.ids(IT_RAINS, AGAIN)

    def test_text_behind_the_marker_is_read(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        reading = model.plan(*self.merged(marker(ref), IT_RAINS, AGAIN))
        assert reading.ids == model.ids(IT_RAINS, AGAIN)

    def test_text_on_both_sides_is_told_apart(self, model, no_warnings):
        ref = model.turn(BE_KIND, HELLO)
        reading = model.plan(*self.merged(BE_KIND, marker(ref), IT_RAINS, AGAIN))
        assert reading.ids == model.ids(IT_RAINS, AGAIN)

    def test_the_fixed_text_is_never_read(self, model):
        [joined, _] = self.merged(BE_KIND, marker(None), IT_RAINS, HELLO)
        assert model.plan(joined, HELLO).ids == model.ids(BE_KIND, IT_RAINS, HELLO, start=True)

    def test_merging_with_a_new_marker_changes_nothing(self, model, no_warnings):
        ref = model.turn(*self.merged(BE_KIND, marker(None), HELLO))
        assert model.plan(*self.merged(BE_KIND, marker(ref), AGAIN)).ids == model.ids(AGAIN)

    def test_two_markers_merged_into_one_are_an_error(self, model):
        ref = model.turn(HELLO)
        for pair in ([marker(ref), marker(ref)], [marker(None), marker(ref)]):
            with pytest.raises(MarkerError, match="merged"):
                model.plan(*self.merged(*pair, AGAIN))


class TestTwoMarkers:
    def test_the_later_one_counts_if_it_descends_from_the_earlier(self, model, no_warnings):
        first = model.turn(HELLO)
        second = model.turn(marker(first), AGAIN)
        third = model.turn(marker(second), HELLO)
        for earlier in (None, first, second, third):
            reading = model.plan(marker(earlier), HELLO, HI, marker(third), AGAIN)
            assert reading.base_ref == third
            assert reading.ids == model.ids(AGAIN)

    def test_of_two_conversations_are_an_error_that_names_both(self, model):
        mine, yours = model.turn(HELLO), model.turn(AGAIN)
        with pytest.raises(MarkerError) as error:
            model.plan(marker(mine), HELLO, HI, marker(yours), AGAIN)
        assert mine in str(error.value)
        assert yours in str(error.value)

    def test_in_the_wrong_order_are_an_error(self, model):
        first = model.turn(HELLO)
        second = model.turn(marker(first), AGAIN)
        with pytest.raises(MarkerError, match="descend"):
            model.plan(marker(second), HELLO, HI, marker(first), AGAIN)
        with pytest.raises(MarkerError, match="new conversation"):
            model.plan(marker(first), marker(None), HELLO)

    def test_of_two_branches_are_an_error(self, model):
        root = model.turn(HELLO)
        left = model.turn(marker(root), HumanMessage("Left."))
        right = model.turn(marker(root), HumanMessage("Right."))
        with pytest.raises(MarkerError, match="descend"):
            model.plan(marker(left), marker(right), AGAIN)

    def test_a_third_one_is_checked_too(self, model):
        stranger, first = model.turn(AGAIN), model.turn(HELLO)
        second = model.turn(marker(first), AGAIN)
        with pytest.raises(MarkerError, match="descend"):
            model.plan(marker(stranger), marker(first), marker(second), AGAIN)

    def test_descent_is_known_of_committed_states(self, model, store, no_warnings):
        first = model.turn(HELLO)
        store.commit("bob", first, None)
        second = model.turn(marker(first), AGAIN)
        store.commit("bob", second, first)
        assert model.plan(marker(first), HELLO, HI, marker(second), AGAIN).base_ref == second


class TestUnreadMessages:
    def test_are_read_and_their_end_is_kept(self, model):
        ref = model.turn(HELLO)
        unread = [HumanMessage("Missed."), AIMessage("Indeed.")]
        reading = model.plan(handed(ref, 2), *unread, AGAIN)
        assert reading.turn_id == TURN
        assert reading.ids == model.ids(*unread, AGAIN)
        assert reading.checkpoints == (len(model.ids(*unread, answer=False)),)
        assert reading.unread_digest == messages_digest(unread)

    def test_of_a_new_session_come_after_its_block(self, model):
        unread = [HumanMessage("Missed."), AIMessage("Indeed.")]
        reading = model.plan(BE_KIND, handed(None, 2), *unread, AGAIN)
        assert reading.ids == model.ids(BE_KIND, *unread, AGAIN, start=True)
        assert reading.checkpoints == (len(model.ids(BE_KIND, *unread, start=True, answer=False)),)

    def test_that_were_taken_out_on_the_way_are_not_counted(self, model):
        ref = model.turn(HELLO)
        reading = model.plan(handed(ref, 2), AGAIN)
        assert reading.checkpoints == ()
        assert reading.unread_digest is None

    def test_that_were_rewritten_on_the_way_have_another_digest(self, model):
        marked = handed(None, 1)
        as_it_was = model.plan(marked, HELLO, AGAIN).unread_digest
        rewritten = model.plan(marked, HumanMessage("Redacted."), AGAIN).unread_digest
        assert as_it_was != rewritten


class TestFiling:
    def test_an_answer_is_filed_under_its_turn(self, model, store):
        base = model.turn(HELLO)
        reading = model.plan(handed(base), AGAIN)
        done = model.read(reading, "Yes.")
        ref = stage(reading, done, store)
        file_answer(reading, done, ref, store)
        [filing] = filings_of(store).of(TURN)
        assert (filing.text_digest, filing.ref, filing.base) == (text_digest("Yes."), ref, base)
        assert (filing.unread_ref, filing.unread_digest) == (None, None)

    def test_a_turn_may_have_several_answers(self, model, store):
        for answer in ("One.", "Two."):
            reading = model.plan(handed(None), HELLO)
            done = model.read(reading, answer)
            file_answer(reading, done, stage(reading, done, store), store)
        digests = [filing.text_digest for filing in filings_of(store).of(TURN)]
        assert digests == [text_digest("One."), text_digest("Two.")]

    def test_the_state_behind_unread_messages_is_filed_too(self, model, store):
        base = model.turn(HELLO)
        unread = [HumanMessage("Missed."), AIMessage("Indeed.")]
        reading = model.plan(handed(base, 2), *unread, AGAIN)
        done = model.read(reading, "Yes.")
        file_answer(reading, done, stage(reading, done, store), store)
        [filing] = filings_of(store).of(TURN)
        assert filing.unread_digest == messages_digest(unread)
        expected = advanced(reading.base, model.ids(*unread, answer=False))
        assert store.get(filing.unread_ref).derivation == expected.derivation

    def test_without_a_turn_nothing_is_filed(self, model, store):
        reading = model.plan(HELLO)
        done = model.read(reading)
        file_answer(reading, done, stage(reading, done, store), store)
        assert filings_of(store).of(TURN) == []

    def test_a_staged_state_is_in_no_session(self, model, store):
        model.turn(HELLO)
        assert store.sessions() == []
        assert store.stats().states == 0


class TestText:
    def test_is_read_as_it_stands(self, model, template):
        reading = model.plan_text("User: a\n\nb ")
        assert reading.ids == tuple(template.text_ids("User: a\n\nb ", start=True))

    def test_goes_on_from_a_marker(self, model, template):
        ref = model.turn(HELLO)
        reading = model.plan_text(" And so", marker(ref))
        assert reading.base_ref == ref
        assert reading.ids == tuple(template.text_ids(" And so", start=False))

    def test_comes_after_unread_messages(self, model, template):
        reading = model.plan_text("Once", marker(None), HELLO)
        read = model.ids(HELLO, start=True, answer=False)
        assert reading.ids == (*read, *template.text_ids("Once", start=False))

    def test_of_a_new_session_begins_as_any_text(self, model):
        assert model.plan_text("Once", marker(None)).ids == model.plan_text("Once").ids

    def test_that_is_empty_is_an_error(self, model):
        with pytest.raises(ValueError, match="empty"):
            model.plan_text("")


def test_leading_system_messages_are_counted():
    assert leading_system([]) == 0
    assert leading_system([HELLO, BE_KIND]) == 0
    assert leading_system([BE_KIND, IT_RAINS, HELLO, BE_KIND]) == 2
    assert leading_system([BE_KIND, IT_RAINS]) == 2
