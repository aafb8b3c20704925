"""What the state behind an answer covers: what was settled and what was said, however it came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_rwkv_state.engine import Delta, Done, Engine, Request, Thought
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.engine.stop import StopMatcher
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import GREEDY, WORLD

ROLES = ("User", "Assistant", "System")
BEFORE = [0, *WORLD.encode("User: Hi"), 261, *WORLD.encode("Assistant:")]
THINKS = [*BEFORE, *WORLD.encode(" <think")]
THOUGHT = Thought(">", "</think>")
KEPT = Thought(">", "</think>", keep=True)

ANSWERS = (
    " One paragraph.\n\nAnother one.\n\n\nA third.",
    " Code:\n\n```python\ndef f(a):\n\n    return a\n```\n\nThat is all.",
    " A list:\n\n- one\n- two\n\n1. first\n\n2. second",
    " He said:\nUser: not a turn\nAssistant: nor this\n\nUsers: many",
    " Trailing line ends.\n\n",
    "",
    " é€😀 \u3000ü\n\n漢字",
)

PIECES = (" a", "\n", "\n\n", "User:", ">", "</think>", "```", " \n", "é", "END")


def answer_ids(text: str) -> list[int]:
    return WORLD.encode(f" {text.strip()}") if text.strip() else []


def thought_ids(thought: str, text: str) -> list[int]:
    return WORLD.encode(f" <think> {thought}</think>" + (f" {text}" if text else ""))


def ask(runtime: FakeRuntime, said: Sequence[int], **given_: Any) -> Request:
    """A request to which the model says `said`."""
    known: dict[str, Any] = {
        "prompt": BEFORE,
        "max_tokens": 200,
        "sampling": GREEDY,
        "roles": ROLES,
        "stop_ids": WORLD.eos_ids,
        "canonical": answer_ids,
    }
    request = Request(runtime.zero_state(), **known | given_)
    runtime.script(request.prompt, said)
    return request


def check(
    runtime: FakeRuntime, request: Request, events: list[Any], ids: Sequence[int] | None = None
) -> Done:
    """Checks the stream against the end, and the state against reading from zero."""
    *deltas, done = events
    assert isinstance(done, Done)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == done.text
    assert "".join(delta.thought for delta in deltas) == (done.thought or "")
    settled = request.prompt if request.settled is None else request.settled
    expected = done.answer_ids if ids is None else ids
    assert list(done.answer_ids) == list(expected)
    assert done.state == FakeRuntime(65_536).forward([*settled, *expected], runtime.zero_state())[1]
    return done


class TestTextsOfEveryKind:
    """Paragraphs, code, lists and role-like lines come through as they were said."""

    @pytest.mark.parametrize("text", ANSWERS)
    @pytest.mark.parametrize("ending", [[0], [*WORLD.encode("\n\nUser: No")]])
    def test_an_answer_is_what_the_model_said(self, engine, runtime, text, ending):
        request = ask(runtime, [*WORLD.encode(text), *ending])
        done = check(runtime, request, list(engine.submit(request)), answer_ids(text))
        assert done.text == text.strip()
        assert done.finish_reason == "stop"
        assert not done.reread

    @pytest.mark.parametrize("text", ANSWERS)
    @pytest.mark.parametrize("thinks", [False, True])
    def test_and_so_it_is_cut_at_every_token(self, runtime, text, thinks):
        said = WORLD.encode(f"> Hm.\n\nWell?\n</think>\n{text}" if thinks else text)
        special = {"thought": THOUGHT, "prompt": THINKS, "settled": BEFORE} if thinks else {}
        requests = [
            ask(runtime, [*said, 0], **{**special, "max_tokens": 1 + n}) for n in range(len(said))
        ]
        crowd = Engine(runtime, WORLD, slots=8)
        handles = [crowd.submit(request) for request in requests]
        found = [list(handle) for handle in handles]
        crowd.close()
        for request, events in zip(requests, found, strict=True):
            whole = WORLD.decode_bytes(said[: request.max_tokens]).decode(errors="ignore")
            done = check(runtime, request, events, answer_ids(events[-1].text))
            thought, _, behind = whole.partition("</think>") if thinks else ("", "", whole)
            matcher = StopMatcher([], roles=ROLES, strip=True)
            assert done.text == matcher.push(behind) + matcher.flush() == behind.strip()
            assert done.finish_reason == "length"
            if thinks and "</think>" in whole:
                assert done.thought == thought.removeprefix(">").strip()
            elif thinks:
                assert done.thought is not None
                assert thought.removeprefix(">").strip().startswith(done.thought)
                assert "</" not in done.thought

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        parts=st.lists(
            st.one_of(
                st.sampled_from(
                    [" a", "\n", "\n\n", "User:", ">", "</think>", "```", " \n", "é", "END"]
                ),
                st.sampled_from([[65_535], [1 + 0xE2], [261], [11], [0]]),
            ),
            max_size=10,
        ),
        thought=st.sampled_from([None, THOUGHT, KEPT]),
        split=st.integers(0, len(BEFORE)),
        continued=st.sampled_from(["", "It is", "One.\n\nUs"]),
        strip=st.booleans(),
        stop=st.sampled_from([(), ("END",), ("\n\n",)]),
        max_tokens=st.integers(1, 14),
    )
    def test_whatever_was_said(self, parts, thought, split, continued, strip, stop, max_tokens):
        runtime = FakeRuntime(65_536)
        said = [
            i for part in parts for i in (WORLD.encode(part) if isinstance(part, str) else part)
        ]
        special: dict[str, Any] = {"settled": [*BEFORE[:split], *WORLD.encode(" else:")]}
        if thought is not None:
            special |= {"thought": thought, "prompt": THINKS}
            special["canonical_thought"] = thought_ids if thought.keep else None
        elif continued:
            special = {"prompt": [*BEFORE, *WORLD.encode(f" {continued}")], "settled": BEFORE}
            special["continued"] = continued
        elif split == len(BEFORE):
            special = {}
        request = ask(runtime, said, **special, strip=strip, stop=stop, max_tokens=max_tokens)
        engine = Engine(runtime, WORLD, prefill_chunk=5)
        events = list(engine.submit(request))
        engine.close()
        done = check(runtime, request, events)
        text = (continued if thought is None else "") + done.text
        if thought is not None and thought.keep:
            assert done.answer_ids == tuple(thought_ids(done.thought or "", text))
        else:
            assert done.answer_ids == tuple(answer_ids(text))
        assert done.thought_tokens <= done.answer_tokens <= max_tokens


class TestThinking:
    """What was thought is told apart, and not in the state unless it is kept."""

    SAID = WORLD.encode("> Let me see.\n\nYes.\n</think>\nIt is 4.")

    def test_the_answer_is_read_again_without_its_thought(self, engine, runtime):
        request = ask(runtime, [*self.SAID, 0], prompt=THINKS, settled=BEFORE, thought=THOUGHT)
        done = check(runtime, request, list(engine.submit(request)), answer_ids("It is 4."))
        assert (done.thought, done.text) == ("Let me see.\n\nYes.", "It is 4.")
        assert runtime.calls[-1] == tuple(answer_ids("It is 4."))  # one pass, from the turn's start
        assert not done.reread
        assert done.prompt_tokens == len(THINKS)
        assert done.answer_tokens == len(self.SAID) + 1
        inside = len(WORLD.encode("> Let me see.\n\nYes.\n</think>\n"))
        assert inside - 1 <= done.thought_tokens <= inside

    def test_a_thought_that_is_kept_is_read_once(self, engine, runtime):
        said = WORLD.encode("> Yes.</think> Four.")
        ids = [*WORLD.encode(" <think> Yes.</think> Four.")]
        assert ids == [*WORLD.encode(" <think"), *said]
        request = ask(
            runtime,
            [*said, 0],
            prompt=THINKS,
            settled=BEFORE,
            thought=KEPT,
            canonical_thought=lambda thought, text: WORLD.encode(
                f" <think> {thought}</think> {text}"
            ),
        )
        runtime.calls.clear()
        done = check(runtime, request, list(engine.submit(request)), ids)
        assert (done.thought, done.text) == ("Yes.", "Four.")
        assert runtime.tokens_read == len(THINKS) + len(said)

    @pytest.mark.parametrize("ending", [[], [0], WORLD.encode("\n\nUser: no")])
    def test_an_end_within_the_thought_leaves_no_text(self, engine, runtime, ending):
        said = [*WORLD.encode("> Let me"), *ending]
        request = ask(
            runtime, said, prompt=THINKS, settled=BEFORE, thought=THOUGHT, max_tokens=len(said)
        )
        done = check(runtime, request, list(engine.submit(request)), [])
        assert (done.thought, done.text) == ("Let me", "")
        assert done.finish_reason == ("stop" if ending else "length")
        assert done.thought_tokens == done.answer_tokens

    def test_words_that_only_ask_for_thought_are_not_settled(self, engine, runtime):
        asked = [
            0,
            *WORLD.encode("User: Hi (think a bit)"),
            261,
            *WORLD.encode("Assistant: <think"),
        ]
        request = ask(runtime, [*self.SAID, 0], prompt=asked, settled=BEFORE, thought=THOUGHT)
        assert 0 < request.common < len(BEFORE)
        check(runtime, request, list(engine.submit(request)), answer_ids("It is 4."))
        assert runtime.calls[-1] == (*BEFORE[request.common :], *answer_ids("It is 4."))

    def test_no_state_is_copied_out_in_a_thought_that_is_dropped(
        self, engine, runtime, monkeypatch
    ):
        copies: list[int] = []
        state = SlotPool.state

        def count(pool: SlotPool, slot: int) -> Any:
            copies.append(slot)
            return state(pool, slot)

        monkeypatch.setattr(SlotPool, "state", count)
        request = ask(runtime, [*self.SAID, 0], prompt=THINKS, settled=BEFORE, thought=THOUGHT)
        engine.submit(request).result()
        assert len(copies) == 2  # at the turn's start and at the end


class TestContinuing:
    """A last answer is continued where it stands."""

    def continue_(self, runtime: FakeRuntime, begun: str, said: str) -> Request:
        return ask(
            runtime,
            [*WORLD.encode(said), 0],
            prompt=[*BEFORE, *WORLD.encode(f" {begun}")],
            settled=BEFORE,
            continued=begun,
        )

    def test_white_space_in_the_middle_is_kept(self, engine, runtime):
        request = self.continue_(runtime, "It is", "\n\n4 and 5. ")
        done = check(
            runtime, request, list(engine.submit(request)), answer_ids("It is\n\n4 and 5.")
        )
        assert done.text == "\n\n4 and 5."

    def test_what_was_read_is_not_read_again(self, engine, runtime):
        request = self.continue_(runtime, "It is", " four")
        runtime.calls.clear()
        check(runtime, request, list(engine.submit(request)), answer_ids("It is four"))
        assert runtime.tokens_read == len([*request.prompt, *WORLD.encode(" four")])

    def test_a_token_across_the_border_is_read_again(self, engine, runtime):
        request = self.continue_(runtime, "Hel", "lo")
        done = check(runtime, request, list(engine.submit(request)), answer_ids("Hello"))
        assert (done.text, done.reread) == ("lo", False)


class TestCopies:
    """Checkpoints stand in what the prompt and the settled ids share."""

    def test_a_checkpoint_is_of_both(self, engine, runtime):
        request = ask(
            runtime,
            [*WORLD.encode("></think> Hi"), 0],
            prompt=THINKS,
            settled=BEFORE,
            thought=THOUGHT,
            checkpoints=(3, len(BEFORE)),
        )
        done = check(runtime, request, list(engine.submit(request)), answer_ids("Hi"))
        whole, zero = FakeRuntime(65_536), runtime.zero_state()
        assert list(done.checkpoints) == [
            whole.forward(BEFORE[:at], zero)[1] for at in (3, len(BEFORE))
        ]

    def test_none_lies_beyond(self, runtime):
        with pytest.raises(ValueError, match=r"part behind 8 ids.*got 9"):
            ask(runtime, [], prompt=THINKS, settled=BEFORE, thought=THOUGHT, checkpoints=(1, 9))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"thought": KEPT}, "needs canonical_thought"),
        ({"thought": THOUGHT, "canonical_thought": thought_ids}, "and no other does"),
        ({"thought": THOUGHT, "continued": "a"}, "has no thought"),
        ({"continued": "a"}, "pass the ids before it as settled"),
        ({"settled": (1,), "max_tokens": 0}, "max_tokens=0 asks for none"),
        ({"roles": ("User", "")}, "roles must be a tuple of texts"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(runtime, given_, message):
    with pytest.raises(ValueError, match=message):
        ask(runtime, [], **given_)


@pytest.mark.parametrize(("opening", "keep"), [("", False), (">", True)])
def test_a_thought_that_nothing_closes_is_refused(opening, keep):
    with pytest.raises(ValueError, match="Without a closing tag there is no thought"):
        Thought(opening, "", keep=keep)


@pytest.mark.parametrize("said", ["> Four.", ">\nFour.", " Four."])
def test_the_tag_of_an_empty_thought_is_completed_and_left_out(engine, runtime, said):
    prompt = [*BEFORE, *WORLD.encode(" <think></think")]
    given_: dict[str, Any] = {"prompt": prompt, "settled": BEFORE, "thought": Thought(">", "")}
    request = ask(runtime, [*WORLD.encode(said), 0], **given_)
    done = check(runtime, request, list(engine.submit(request)), answer_ids("Four."))
    assert (done.text, done.thought, done.thought_tokens) == ("Four.", None, 0)
    cut = ask(runtime, WORLD.encode(said), **given_, max_tokens=1)
    assert check(runtime, cut, list(engine.submit(cut))).text in ("", "Four")


def test_settled_ids_that_the_model_does_not_know_are_refused(
    engine: Engine, runtime: FakeRuntime
) -> None:
    with pytest.raises(ValueError, match="what is settled holds 65536"):
        engine.submit(ask(runtime, [], settled=[*BEFORE, 65_536]))
