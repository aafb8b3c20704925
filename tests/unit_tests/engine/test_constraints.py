"""Answers that are held to a grammar: they fit it, in canonical ids, beside everybody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from langchain_rwkv_state.engine import Delta, Done, Engine, Request, Sampling, Thought, steps
from langchain_rwkv_state.engine import constraints as module
from langchain_rwkv_state.engine.constraints import Grammars
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler, scan_rows
from langchain_rwkv_state.errors import EngineError, SchemaError
from langchain_rwkv_state.grammar.constraint import (
    Constraint,
    calls_constraint,
    json_schema_constraint,
    no_calls_constraint,
)
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import JsonTokenizer, Tokenizer
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import GREEDY, WORLD

ADD = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "to": {"enum": ["north", "né", "漢字"]},
        },
        "required": ["a", "to"],
    },
}
NOW: dict[str, Any] = {"name": "now", "parameters": None}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "when": {"type": "string", "format": "date"},
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z]{2,5}$"},
            "maxItems": 3,
        },
        "more": {"anyOf": [{"type": "null"}, {"type": "number", "minimum": -9, "maximum": 1e5}]},
    },
    "required": ["name", "when", "tags", "more"],
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{2,5}$"}},
}
CALL = '```json\n{"name":"add","arguments":{"a":12,"to":"north"}}\n```'
AUTO = calls_constraint([ADD, NOW], choice="auto", parallel=True)
ANY = calls_constraint([ADD, NOW], choice="any", parallel=True)
JSON = json_schema_constraint(SCHEMA)


def encoder(tokenizer: Tokenizer) -> Any:
    return lambda text: tokenizer.encode(f" {text.strip()}") if text.strip() else []


def ask(
    runtime: FakeRuntime,
    constraint: Constraint,
    said: str | Sequence[int] = (),
    tokenizer: Tokenizer = WORLD,
    **given: Any,
) -> Request:
    known: dict[str, Any] = {
        "prompt": [1, 2, 3],
        "max_tokens": 300,
        "sampling": GREEDY,
        "roles": ("User",),
        "stop_ids": tokenizer.eos_ids,
        "canonical": encoder(tokenizer),
        "constraint": constraint,
    }
    request = Request(runtime.zero_state(), **known | given)
    ids = tokenizer.encode(said) if isinstance(said, str) else said
    runtime.script(request.prompt, ids)
    return request


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(write_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer.json"))


def check(runtime: FakeRuntime, request: Request, events: list[Any]) -> Done:
    *deltas, done = events
    assert isinstance(done, Done)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == done.text
    assert request.canonical is not None
    assert list(done.answer_ids) == list(request.canonical(done.text))
    assert done.state == read(runtime, [*(request.settled or request.prompt), *done.answer_ids])
    return done


def read(runtime: FakeRuntime, ids: Sequence[int]) -> RWKVState:
    return FakeRuntime(runtime.vocab_size).forward(ids, runtime.zero_state())[1]


def json_of(text: str) -> Any:
    fenced = text.startswith("```json\n") and text.endswith("\n```")
    return json.loads(text[len("```json\n") : -len("\n```")] if fenced else text)


def random_answers(
    runtime: FakeRuntime, tokenizer: Tokenizer, constraint: Constraint, count: int
) -> list[Done]:
    engine = Engine(runtime, tokenizer)
    engine.prepare(constraint)
    requests = [
        ask(
            runtime,
            constraint,
            tokenizer=tokenizer,
            prompt=[1, n],
            sampling=Sampling(seed=n, temperature=1.5, top_p=1),
        )
        for n in range(count)
    ]
    handles = [engine.submit(request) for request in requests]
    found = [list(handle) for handle in handles]
    assert check(runtime, requests[0], list(engine.submit(requests[0]))) == found[0][-1]
    engine.close()
    return [
        check(runtime, request, events) for request, events in zip(requests, found, strict=True)
    ]


class TestWhateverTheModelWouldSay:
    """Answers at random fit their grammar, and stand in the ids that their text has."""

    @pytest.mark.parametrize("world", [True, False])
    def test_json_of_a_schema(self, small, world):
        tokenizer, count = (WORLD, 12) if world else (small, 40)
        runtime = FakeRuntime(65_536 if world else small.vocab_size + 3)
        done = random_answers(runtime, tokenizer, JSON, count)
        finished = [one for one in done if one.finish_reason == "stop"]
        assert len(finished) > count // 2
        for one in finished:
            Draft202012Validator(
                SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER
            ).validate(json.loads(one.text))
        assert not any(one.reread for one in done)

    def test_calls(self, small):
        done = random_answers(FakeRuntime(small.vocab_size), small, ANY, 40)
        finished = [json_of(one.text) for one in done if one.finish_reason == "stop"]
        assert len(finished) > 20
        calls = [call for each in finished for call in (each if isinstance(each, list) else [each])]
        assert {call["name"] for call in calls} == {"add", "now"}
        for call in calls:
            schema = ADD["parameters"] if call["name"] == "add" else {"maxProperties": 0}
            Draft202012Validator(schema).validate(call["arguments"])
        assert not any(one.reread for one in done)

    def test_ids_that_no_text_would_have_are_not_chosen(self, engine, runtime):
        letters = [i for letter in ' {"name":"Hello' for i in WORLD.encode(letter)]
        request = ask(runtime, JSON, letters)
        done = check(runtime, request, list(engine.submit(request)))
        assert not done.reread

    def test_an_answer_whose_end_the_model_chooses(self, engine, runtime):
        constraint = Constraint('start: " " /[0-9]+/')
        request = ask(runtime, constraint, [*WORLD.encode(" 12"), 0])
        done = check(runtime, request, list(engine.submit(request)))
        assert (done.text, done.finish_reason, done.answer_tokens) == ("12", "stop", 2)

    def test_where_nothing_is_canonical_the_answer_is_read_again(
        self, engine, runtime, monkeypatch
    ):
        monkeypatch.setattr(module._Held, "_fits", lambda *_: None)
        request = ask(runtime, Constraint('start: " " ("Hello" | "World") "!"'))
        done = check(runtime, request, list(engine.submit(request)))
        assert done.text in ("Hello!", "World!")


class TestForced:
    """What the grammar forces is not asked for, and read in one pass."""

    def test_forced_ids_are_read_together(self, engine, runtime):
        request = ask(runtime, ANY, f" {CALL}")
        done = check(runtime, request, list(engine.submit(request)))
        assert done.text == CALL
        assert done.finish_reason == "stop"
        assert not done.reread
        assert done.answer_tokens == len(done.answer_ids) == len(WORLD.encode(f" {CALL}"))
        assert 0.4 < done.forced_tokens / done.answer_tokens < 1
        steps = [ids for ids in runtime.calls if ids != (1, 2, 3)]
        assert max(map(len, steps)) > 2
        assert engine.stats().forced_tokens == done.forced_tokens
        assert engine.stats().decoded_tokens == done.answer_tokens

    def test_the_limit_of_tokens_holds_among_them(self, engine, runtime):
        for limit in range(1, 12):
            request = ask(runtime, ANY, f" {CALL}", max_tokens=limit)
            done = check(runtime, request, list(engine.submit(request)))
            assert (done.answer_tokens, done.finish_reason) == (limit, "length")
            assert CALL.startswith(done.text)

    def test_forced_ids_are_not_counted_for_the_penalties(self, engine, runtime, monkeypatch):
        seen: list[int] = []
        request = ask(
            runtime, ANY, f" {CALL}", sampling=Sampling(temperature=0, presence_penalty=1)
        )
        sampler = Sampler
        saw = sampler.saw
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler, "saw", lambda self, token, piece: seen.append(token))
            done = engine.submit(request).result()
        assert len(seen) == done.answer_tokens - done.forced_tokens
        assert callable(saw)


class TestWhereTheModelChooses:
    """Free text stays free; a call is held from where it begins."""

    @pytest.mark.parametrize(
        "text", ["It is four.\n\nReally.", 'Some code:\n```json\n{"n":1}\n```\nDone.', "```json\n"]
    )
    def test_free_text_is_what_the_model_said(self, engine, runtime, text):
        request = ask(runtime, AUTO, [*WORLD.encode(f" {text}"), 0])
        done = check(runtime, request, list(engine.submit(request)))
        assert (done.text, done.forced_tokens) == (text.strip(), 0)

    @pytest.mark.parametrize("before", [" ", "", " Let me see.\n\n", " First:\n", "\n"])
    @pytest.mark.parametrize("cut", ["whole", "letters"])
    def test_a_call_is_held_wherever_it_begins(self, engine, runtime, before, cut):
        said = f'{before}```json\n{{"name":"add","arguments":{{"wrong":'
        ids = WORLD.encode(said) if cut == "whole" else [i for c in said for i in WORLD.encode(c)]
        request = ask(runtime, AUTO, ids)
        done = check(runtime, request, list(engine.submit(request)))
        assert done.text.startswith(before.strip())
        call = json_of(done.text.removeprefix(before.strip()).strip())
        assert call["name"] == "add"
        assert {*call["arguments"]} == {"a", "to"}
        assert done.finish_reason == "stop"
        if cut == "whole" and before == " ":
            assert not done.reread

    def test_an_id_that_reaches_past_the_beginning_must_fit(self, engine, runtime):
        straddles = WORLD.encode('":"add')
        request = ask(runtime, AUTO, [*WORLD.encode(' ```json\n{"name'), *straddles, 0])
        assert json_of(engine.submit(request).result().text)["name"] in ("add", "now")
        odd = next(i for i in range(65_530) if WORLD.decode_bytes([i]) == b'":"","')
        request = ask(runtime, AUTO, [*WORLD.encode(' ```json\n{"name'), odd], prompt=[9])
        done = check(runtime, request, list(engine.submit(request)))
        assert '":"","' not in done.text

    def test_no_call_is_begun_where_none_is_wanted(self, engine, runtime):
        request = ask(runtime, no_calls_constraint(), f" {CALL}", max_tokens=20)
        done = check(runtime, request, list(engine.submit(request)))
        assert '{"name":"' not in done.text
        assert done.text.startswith('```json\n{"name')


class TestBehindAThought:
    """The grammar holds behind the closing tag, and the thought is free."""

    THINKS = (*WORLD.encode("Assistant: <think"),)
    SPECIAL: ClassVar[dict[str, Any]] = {
        "prompt": [1, *THINKS],
        "settled": [1, *THINKS[:2]],
        "thought": Thought(">", "</think>"),
    }

    @pytest.mark.parametrize("tail", ["</think> Hi", "</think>\nHi", "</think>"])
    def test_the_answer_fits_and_the_thought_is_as_it_was(self, engine, runtime, tail):
        request = ask(runtime, JSON, f"> What? {CALL}{tail}", **self.SPECIAL)
        done = check(runtime, request, list(engine.submit(request)))
        assert done.thought == f"What? {CALL}"
        Draft202012Validator(SCHEMA).validate(json.loads(done.text))

    def test_an_id_across_the_tag_is_taken_if_it_fits(self, engine, runtime):
        across = WORLD.encode("><")
        assert len(across) == 1
        said = [*WORLD.encode("> Hm.</think"), *across]
        fitting = Constraint('start: "<yes"')
        request = ask(runtime, fitting, said, **self.SPECIAL)
        done = check(runtime, request, list(engine.submit(request)))
        assert (done.thought, done.text) == ("Hm.", "<yes")
        assert done.thought_tokens == len(said)
        # Where it does not fit, the next best one is: here the tag's end alone.
        logits = torch.zeros(65_536)
        logits[across[0]], logits[WORLD.encode(">")[0]] = 50, 40
        runtime.script_logits([*self.SPECIAL["prompt"], *said[:-1]], logits)
        request = ask(runtime, Constraint('start: " yes"'), said, **self.SPECIAL)
        done = check(runtime, request, list(engine.submit(request)))
        assert (done.thought, done.text) == ("Hm.", "yes")

    @pytest.mark.parametrize("said", ["> {", ">\n", " Hi"])
    def test_the_tag_of_an_empty_thought_comes_first(self, engine, runtime, said):
        given = {**self.SPECIAL, "thought": Thought(">", "")}
        request = ask(runtime, JSON, said, **given)
        done = check(runtime, request, list(engine.submit(request)))
        Draft202012Validator(SCHEMA).validate(json.loads(done.text))
        assert done.thought is None

    def test_calls_by_choice_and_none_hold_there_too(self, engine, runtime):
        said = f"> I could {CALL}.</think>\n{CALL}"
        request = ask(runtime, AUTO, said, **self.SPECIAL)
        done = check(runtime, request, list(engine.submit(request)))
        assert (done.thought, done.text) == (f"I could {CALL}.", CALL)
        request = ask(runtime, no_calls_constraint(), said, **self.SPECIAL, max_tokens=60)
        done = check(runtime, request, list(engine.submit(request)))
        assert done.thought == f"I could {CALL}."
        assert '{"name":"' not in done.text


class TestAhead:
    """Which ids may come is known before there are logits, and who chose by then has chosen."""

    CONSTRAINTS = (JSON, ANY)

    @staticmethod
    def rows(vocab_size: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(300, vocab_size, generator=generator)

    def answer(self, small: JsonTokenizer, constraint: Constraint, seed: int, ahead: bool) -> Any:
        """The choices of an answer at random, how many were chosen ahead, and how many anew."""
        grammars = Grammars(small, small.vocab_size)
        guide, sampler = grammars.guide(constraint), Sampler(Sampling(seed=seed, top_p=1))
        found, counts = [], [0, 0]
        for logits in self.rows(small.vocab_size, seed):
            mask, samplers = guide.mask() if ahead else None, {}
            if mask is not None:
                samplers[0] = sampler
            (row,) = scan_rows(logits[None], samplers, {0: mask})
            before = sampler.n_chosen
            found.append(guide.choose(row, sampler))
            made = sampler.n_chosen - before
            if ahead:
                assert (made > 0) == (mask is not None) == (found[-1].chosen > 0)
            counts = [counts[0] + (made > 0), counts[1] + max(0, made - 1)]
            if found[-1].ended:
                break
        return found, counts

    @pytest.mark.parametrize("constraint", CONSTRAINTS)
    def test_it_changes_no_answer(self, small: JsonTokenizer, constraint: Constraint) -> None:
        ahead = anew = 0
        for seed in range(6):
            choices, counts = self.answer(small, constraint, seed, ahead=True)
            assert choices == self.answer(small, constraint, seed, ahead=False)[0]
            ahead += counts[0]
            anew += counts[1]
        assert ahead > 20
        # Some first choices of the schema's were none that an answer could stand in.
        assert anew or constraint is ANY

    def test_the_choice_is_taken_and_no_logits_are_read(self, small: JsonTokenizer) -> None:
        guide = Grammars(small, small.vocab_size).guide(ANY)
        sampler = Sampler(Sampling(seed=1))

        def read() -> Any:
            raise AssertionError("the logits stay where they are")

        assert guide.mask() is None  # the beginning is forced
        assert guide.choose(LogitsRow(read, 0, True), sampler).chosen == 0
        mask = guide.mask()
        assert mask is not None
        assert guide.mask() is mask
        token = int(np.unpackbits(mask.view(np.uint8), bitorder="little").argmax())
        row = LogitsRow(read, 0, True)
        sampler.chose(row, mask, token)
        assert guide.choose(row, sampler).ids[0] == token

    def test_free_text_has_no_mask(self, small: JsonTokenizer) -> None:
        guide = Grammars(small, small.vocab_size).guide(AUTO)
        assert (guide.mask(), guide.holds) == (None, False)

    def test_the_engine_chooses_ahead(self, engine, runtime, monkeypatch) -> None:
        given: list[Any] = []

        def spied(logits: Any, samplers: Any = None, allowed: Any = None) -> Any:
            given.extend(mask for mask in (allowed or {}).values() if mask is not None)
            return scan_rows(logits, samplers, allowed)

        monkeypatch.setattr(steps, "scan_rows", spied)
        request = ask(runtime, JSON, sampling=Sampling(seed=1))
        check(runtime, request, list(engine.submit(request)))
        assert len(given) > 3


class TestCompiling:
    """Compiled once for equal constraints, by whoever asks first, and refused before decoding."""

    def test_equal_constraints_are_compiled_once(self, engine, runtime, monkeypatch):
        compiled: list[str] = []
        compile_ = module._compiled

        def count(tables: Any, grammar: str) -> Any:
            compiled.append(grammar)
            return compile_(tables, grammar)

        monkeypatch.setattr(module, "_compiled", count)
        for _ in range(3):
            engine.prepare(json_schema_constraint(dict(SCHEMA)))
            engine.submit(ask(runtime, JSON, max_tokens=1)).result()
        assert compiled == [JSON.grammar]
        engine.prepare(no_calls_constraint())
        assert len(compiled) == 1

    def test_many_threads_may_ask_at_once(self, engine, runtime):
        found: list[str] = []

        def one() -> None:
            engine.prepare(ANY)
            found.append(engine.submit(ask(runtime, ANY, f" {CALL}")).result().text)

        threads = [threading.Thread(target=one) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == [CALL] * 6

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            (
                {
                    "$defs": {"A": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
                    "$ref": "#/$defs/A",
                },
                r"#/\$defs/A.*take anyOf",
            ),
            ({"enum": [1], "type": "string"}, "nothing fits it"),
            ({"type": "strin"}, "Invalid type: strin"),
        ],
    )
    def test_a_refusal_names_the_place_and_comes_before_a_token(
        self, engine, runtime, schema, message
    ):
        constraint = json_schema_constraint(schema)
        with pytest.raises(SchemaError, match=message):
            engine.prepare(constraint)
        with pytest.raises(SchemaError, match=message):
            engine.submit(ask(runtime, constraint))
        assert not runtime.calls

    def test_a_grammar_that_is_none_is_refused(self, engine):
        with pytest.raises(SchemaError, match=r"held to the grammar.*unknown name"):
            engine.prepare(Constraint("start: nothing"))

    def test_a_matcher_that_fails_on_its_way_is_an_error(self, engine, runtime, monkeypatch):
        # As after a limit of the parser's: it would allow nothing but the end from there on.
        monkeypatch.setattr(Sampler, "choose", lambda *_: WORLD.encode("?")[0])
        with pytest.raises(EngineError, match=r"could not be held to its grammar: .*Simplify"):
            engine.submit(ask(runtime, Constraint('start: " " ("a" | "b")'))).result()
        monkeypatch.undo()
        assert engine.submit(ask(runtime, ANY, f" {CALL}")).result().text == CALL

    def test_a_tokenizer_without_an_end_ends_where_nothing_more_fits(self, small):
        class Endless:
            eos_ids: frozenset[int] = frozenset()
            identity = "endless"

            def __getattr__(self, name: str) -> Any:
                return getattr(small, name)

        runtime, tokenizer = FakeRuntime(small.vocab_size + 40), Endless()
        constraint = Constraint('start: " " /[ab]{2}/')
        done = random_answers(runtime, tokenizer, constraint, 5)
        assert all(one.finish_reason == "stop" and len(one.text) == 2 for one in done)


@pytest.mark.parametrize(
    "given", [{"max_tokens": 0}, {"continued": "a", "settled": (1,), "prompt": (1, 2)}]
)
def test_a_constraint_holds_a_whole_answer(runtime, given):
    with pytest.raises(ValueError, match="leaves nothing to continue"):
        ask(runtime, JSON, **given)
