"""Log-probabilities: the model's own, one a token, with the text that the token has a part in."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.engine import Delta, Done, Engine, Request, Sampling, Thought
from langchain_rwkv_state.engine import logprobs as module
from langchain_rwkv_state.engine.answer import Answer
from langchain_rwkv_state.engine.logprobs import LogprobLedger
from langchain_rwkv_state.engine.request import TokenLogprob
from langchain_rwkv_state.engine.sampler import LogitsRow
from langchain_rwkv_state.grammar.constraint import json_schema_constraint
from langchain_rwkv_state.prefix_cache import Caching, PrefixStateCache
from langchain_rwkv_state.runtime.slots import Read
from langchain_rwkv_state.tokenizer import JsonTokenizer, StreamDecoder
from tests.helpers.ahead_slots import AheadSlots
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.fake_runtime import ALL_AHEAD, EACH_WAY, FakeRuntime
from tests.helpers.scripted import GREEDY, WORLD

PROMPT = (1, 2, 3)
ODD = Sampling(temperature=1.4, top_p=0.6, top_k=9, presence_penalty=2, frequency_penalty=1, seed=5)


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> FakeRuntime:
    return FakeRuntime(65_536, ahead=getattr(request, "param", ALL_AHEAD))


def ask(runtime: FakeRuntime, said: Sequence[int] = (), **given: Any) -> Request:
    known: dict[str, Any] = {
        "prompt": PROMPT,
        "max_tokens": 8,
        "sampling": GREEDY,
        "strip": False,
        "stop_ids": WORLD.eos_ids,
        "logprobs": 5,
    }
    request = Request(runtime.zero_state(), **known | given)
    runtime.script(request.prompt, said)
    return request


def as_bytes(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


def finished(engine: Engine, request: Request) -> tuple[list[Delta], Done]:
    *deltas, done = list(engine.submit(request))
    assert isinstance(done, Done)
    pieces = [each for each in deltas if isinstance(each, Delta)]
    assert [entry for each in pieces for entry in each.logprobs] == list(done.logprobs or ())
    return pieces, done


def entries(engine: Engine, request: Request) -> tuple[TokenLogprob, ...]:
    found = finished(engine, request)[1].logprobs
    assert found is not None
    return found


def joined(found: Sequence[TokenLogprob]) -> bytes:
    return b"".join(each.bytes for each in found)


def log_softmax(runtime: FakeRuntime, ids: Sequence[int]) -> torch.Tensor:
    """Of the logits behind these ids, by PyTorch and in fp64."""
    logits, _ = runtime.forward(ids, runtime.zero_state())
    return torch.log_softmax(logits.double(), 0)


@EACH_WAY
@pytest.mark.parametrize("sampling", [GREEDY, ODD, Sampling(seed=2)], ids=["greedy", "odd", "free"])
def test_each_is_of_the_models_own_distribution(runtime, engine, sampling):
    request = ask(runtime, sampling=sampling)
    found = entries(engine, request)
    assert len(found) == 8
    read = list(PROMPT)
    for entry in found:
        wanted = log_softmax(runtime, read)
        assert entry.logprob == pytest.approx(wanted[entry.id].item(), abs=1e-5)
        values, ids = wanted.topk(5)
        assert [each.id for each in entry.top] == ids.tolist()
        assert [each.logprob for each in entry.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert all(each.bytes == WORLD.decode_bytes([each.id]) for each in entry.top)
        read.append(entry.id)


@EACH_WAY
def test_asking_changes_no_answer(runtime, engine):
    asked = engine.submit(ask(runtime, sampling=ODD)).result()
    plain = engine.submit(ask(runtime, sampling=ODD, logprobs=None)).result()
    assert plain.logprobs is None
    assert replace(asked, logprobs=None) == plain


@EACH_WAY
def test_nothing_is_computed_or_fetched_for_who_does_not_ask(runtime, monkeypatch):
    rows: list[Any] = []
    wanted: list[bool] = []
    fetch, launch = module._log_softmax, AheadSlots.launch

    def counted(*given: Any) -> Any:
        rows.append(given)
        return fetch(*given)

    def seen(slots: AheadSlots, reads: Sequence[Read]) -> Any:
        wanted.extend(read.logits for read in reads)
        return launch(slots, reads)

    monkeypatch.setattr(module, "_log_softmax", counted)
    monkeypatch.setattr(AheadSlots, "launch", seen)
    engine = Engine(runtime, WORLD)
    handles = [engine.submit(ask(runtime, prompt=[n], logprobs=None)) for n in range(4)]
    assert all(handle.result().answer_tokens == 8 for handle in handles)
    assert not rows
    assert not any(wanted)
    handles = [
        engine.submit(ask(runtime, prompt=[9 + n], logprobs=0 if n else None)) for n in (0, 1)
    ]
    assert [handle.result().answer_tokens for handle in handles] == [8, 8]
    engine.close()
    assert len(rows) == 8
    assert sum(wanted) == (8 if hasattr(runtime, "slots") else 0)


@EACH_WAY
def test_of_a_crowd_each_gets_its_own(runtime, engine):
    chance = random.Random(1)
    asked = [
        ask(
            runtime,
            prompt=[chance.randrange(1, 60_000) for _ in range(chance.choice([1, 5, 30]))],
            sampling=replace(ODD, seed=number),
            logprobs=chance.choice([None, 0, 2]),
        )
        for number in range(12)
    ]
    handles = [engine.submit(request) for request in asked]
    crowd = [handle.result() for handle in handles]
    assert [finished(engine, request)[1] for request in asked] == crowd


def test_none_are_beside_where_none_were_wanted(runtime, engine):
    assert all(not each.top for each in entries(engine, ask(runtime, logprobs=0)))


def test_a_stop_text_leaves_whole_tokens(runtime, engine):
    said = [*WORLD.encode("Hello wor"), *WORLD.encode("ld!EN"), *WORLD.encode("D of it")]
    deltas, done = finished(engine, ask(runtime, said, stop=("!END",)))
    assert done.text == "Hello world"
    assert done.logprobs is not None
    spoken = joined(done.logprobs)
    assert spoken.startswith(b"Hello world")
    # The last has a part in the text, and what it says besides was the beginning of the stop text.
    assert len(spoken) - len(done.logprobs[-1].bytes) < len("Hello world")
    assert not any(each.logprobs for each in deltas if not each.text)


def test_a_token_that_ends_the_text_has_no_entry(runtime, engine):
    done = finished(engine, ask(runtime, [*WORLD.encode("Hello"), 0]))[1]
    assert done.finish_reason == "stop"
    assert done.logprobs is not None
    assert joined(done.logprobs) == b"Hello"


def test_characters_that_take_several_tokens_come_with_all_of_them(runtime, engine):
    deltas, done = finished(engine, ask(runtime, [*as_bytes("é漢!"), 0]))
    assert done.logprobs is not None
    assert joined(done.logprobs) == "é漢!".encode()
    assert [len(each.logprobs) for each in deltas] == [2, 3, 1]
    assert [each.at for each in done.logprobs] == [0, 0, 1, 1, 1, 2]
    assert [each.token for each in done.logprobs[:2]] == ["\N{REPLACEMENT CHARACTER}"] * 2


def test_a_character_that_is_cut_off_has_no_entry(runtime, engine):
    done = finished(engine, ask(runtime, as_bytes("a漢"), max_tokens=3))[1]
    assert done.text == "a"
    assert done.logprobs is not None
    assert joined(done.logprobs) == b"a"


def test_white_space_that_is_held_back_comes_once_and_in_its_place(runtime, engine):
    said = [*WORLD.encode("  a"), *WORLD.encode("\n"), *WORLD.encode("\n"), *WORLD.encode("b "), 0]
    deltas, done = finished(engine, ask(runtime, said, strip=True, roles=("User",)))
    assert done.text == "a\n\nb"
    assert done.logprobs is not None
    assert joined(done.logprobs).strip() == b"a\n\nb"
    for each in done.logprobs:
        assert done.text[each.at :].encode().startswith(each.bytes.strip())
    assert [each.text for each in deltas if each.logprobs] == [each.text for each in deltas]


def test_a_thoughts_tokens_have_no_entries(runtime, engine, monkeypatch):
    computed: list[int] = []
    compute = module._log_softmax

    def counted(scores: Any, token: int, n_top: int) -> Any:
        computed.append(token)
        return compute(scores, token, n_top)

    monkeypatch.setattr(module, "_log_softmax", counted)
    said = WORLD.encode("> One two three four.</think>\nYes.")
    thought = Thought(">", "</think>")
    request = ask(runtime, [*said, 0], strip=True, thought=thought, max_tokens=40)
    done = finished(engine, request)[1]
    assert (done.thought, done.text) == ("One two three four.", "Yes.")
    assert done.logprobs is not None
    assert joined(done.logprobs).strip() == b"Yes."
    assert len(computed) < 6  # of what may be the answer's alone: a thought is long


def test_what_a_constraint_forces_was_no_choice_of_the_models(tmp_path):
    tokenizer = JsonTokenizer(write_tokenizer(tmp_path / "tokenizer.json"))
    runtime = FakeRuntime(tokenizer.vocab_size)
    engine = Engine(runtime, tokenizer)
    schema = {"type": "object", "properties": {"room": {"type": "integer"}}, "required": ["room"]}
    request = ask(
        runtime,
        max_tokens=30,
        stop_ids=tokenizer.eos_ids,
        constraint=json_schema_constraint(schema),
        sampling=Sampling(seed=3),
    )
    done = finished(engine, request)[1]
    engine.close()
    assert done.text.startswith(' {"room":')
    assert done.logprobs is not None
    assert joined(done.logprobs).decode() == done.text
    forced = [each for each in done.logprobs if each.forced]
    assert len(forced) == done.forced_tokens > 0
    assert {(each.logprob, each.top) for each in forced} == {(0.0, ())}
    read = list(PROMPT)
    for each in done.logprobs:
        if not each.forced:
            # Not among what the constraint allows: the likeliest may be none of these.
            wanted = log_softmax(runtime, read)
            assert each.logprob == pytest.approx(wanted[each.id].item(), abs=1e-5)
            assert each.top[0].id == int(wanted.argmax())
        read.append(each.id)


def test_logits_from_the_prefix_cache_count_as_the_models(runtime, engine):
    cache = PrefixStateCache()
    request = ask(runtime, prompt=[*range(1, 40)], caching=Caching(cache, ends=()))
    first, again = finished(engine, request)[1], finished(engine, request)[1]
    assert (first.reused, again.reused) == (0, 39)
    assert first.logprobs == again.logprobs


@pytest.mark.parametrize("wrong", [-1, 21, 1.5, True])
def test_so_many_cannot_be_had(runtime, wrong):
    with pytest.raises(ValueError, match=r"logprobs must be a whole number, in \[0, 20\]"):
        ask(runtime, logprobs=wrong)


# -- the ledger alone ---------------------------------------------------------------------------


def row(scores: Sequence[float]) -> LogitsRow:
    array = np.array(scores, dtype=np.float32)
    return LogitsRow(array, int(array.argmax()), finite=True)


class Letters:
    """A tokenizer whose ids are the places in a list of pieces."""

    identity = "letters"
    bos_id = None
    eos_ids: frozenset[int] = frozenset()

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.vocab_size = len(pieces)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode_bytes(self, ids: Any) -> bytes:
        return b"".join(self.pieces[each] for each in ids)

    def decode(self, ids: Any) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


def spoken(
    request: Request, pieces: Sequence[bytes]
) -> tuple[str, list[TokenLogprob], list[tuple[str, list[TokenLogprob]]]]:
    answer, decoder = Answer(request), StreamDecoder()
    ledger = LogprobLedger(0, Letters(pieces), answer)
    deltas = []
    for token, piece in enumerate(pieces):
        new = decoder.push(piece)
        delta = answer.push(new)
        ledger.note(token, piece, new, row([0.0] * len(pieces)), partial=bool(decoder.pending))
        if delta is not None:
            deltas.append(ledger.hand_on(delta))
        if answer.stopped:
            break
    rest = answer.flush(cut=True)
    if rest is not None:
        deltas.append(ledger.hand_on(rest))
    return answer.text, [*ledger.handed_on], [(each.text, [*each.logprobs]) for each in deltas]


PIECES = st.lists(
    st.sampled_from(
        ["a", "é", "漢字", " ", "\n", "\n\n", "Us", "er:", "EN", "D", "</think>", "> x", ""]
    ),
    max_size=10,
)


@given(
    said=PIECES,
    data=st.data(),
    strip=st.booleans(),
    kind=st.sampled_from(["", "asked", "not", "tag"]),
)
def test_each_token_with_a_part_in_the_text_comes_once(said, data, strip, kind):
    whole = "".join(said).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    borders = [0, *cuts, len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(borders)]
    thought = {
        "": None,
        "asked": Thought(">", "</think>"),
        "not": Thought("> x", "</think>", asked=False),
        "tag": Thought("> x", ""),
    }
    request = ask(
        FakeRuntime(8), stop=("END",), roles=("User",), strip=strip, thought=thought[kind]
    )
    text, handed, deltas = spoken(request, pieces)
    assert [each for _, some in deltas for each in some] == handed
    assert [each.id for each in handed] == sorted({each.id for each in handed})
    if not text:
        assert not handed
        return
    found, wanted = joined(handed), text.encode()
    at = found.find(wanted)
    first = next(each for each in handed if each.bytes)
    assert 0 <= at < len(first.bytes)
    last = next(each for each in reversed(handed) if each.bytes)
    assert len(found) - len(last.bytes) < at + len(wanted)
    before = 0
    for piece, some in deltas:
        for each in some:
            assert before <= each.at < before + len(piece)
        before += len(piece)


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.5, -3.0, 3e38, -3e38, 1e-40]), min_size=1, max_size=9)
)
def test_any_finite_logits_give_finite_logprobs_in_order(scores):
    logprobs, top = module._log_softmax(row(scores).scores, len(scores) - 1, 4)
    wanted = torch.log_softmax(torch.tensor(scores).double(), 0)
    ids = [len(scores) - 1, *top]
    assert logprobs == pytest.approx([wanted[each].item() for each in ids], rel=1e-5, abs=1e-5)
    assert top == sorted(range(len(scores)), key=lambda each: (-scores[each], each))[:4]
    assert max(logprobs) <= 0


def test_half_a_character_behind_white_space_is_part_of_the_text():
    text, handed, _ = spoken(ask(FakeRuntime(8), strip=True), [b" \xc3", b"\xa9", b"!"])
    assert text == "é!"
    assert [(each.bytes, each.at) for each in handed] == [(b" \xc3", 0), (b"\xa9", 0), (b"!", 1)]


def test_a_tag_that_is_left_out_moves_no_place():
    request = ask(FakeRuntime(8), strip=True, thought=Thought(">", ""))
    text, handed, _ = spoken(request, [b"> ", b"Yes", b"!"])
    assert text == "Yes!"
    assert [(each.bytes, each.at) for each in handed] == [(b"Yes", 0), (b"!", 3)]
