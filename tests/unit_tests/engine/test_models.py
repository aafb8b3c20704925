"""The engine on real arithmetic: tiny random models of every version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_rwkv_state.engine import Delta, Engine, Request, Sampling
from langchain_rwkv_state.prompt.template import WorldTemplate
from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import JsonTokenizer, StreamDecoder
from tests.helpers.checkpoints import write_checkpoint, write_tokenizer
from tests.helpers.devices import ON_CARD, ON_CPU, on_card

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(write_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer.json"))


@pytest.fixture(
    scope="module",
    params=[
        *((version, "cpu fp32") for version in (4, 5.2, 6)),
        (7, "package cpu fp32"),
        (7, ON_CPU),
        on_card((7, ON_CARD)),
    ],
    ids=lambda param: f"rwkv-{param[0]}-{param[1]}",
)
def runtime(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runtime]:
    path: Path = tmp_path_factory.mktemp("model") / "model.pth"
    version, strategy = request.param
    write_checkpoint(path, version, n_embd=64, head_size=32)
    runtime = load_runtime(str(path), strategy=strategy)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def engine(runtime: Runtime, tokenizer: JsonTokenizer) -> Iterator[Engine]:
    engine = Engine(runtime, tokenizer, prefill_chunk=5)
    yield engine
    engine.close()


def differ(runtime: Runtime, one: RWKVState, other: RWKVState) -> float:
    """How far apart the next-token distributions of two states are."""
    probe = [1]
    (a, _), (b, _) = runtime.forward(probe, one), runtime.forward(probe, other)
    return float((a - b).abs().max())


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompt=st.lists(st.integers(0, 280), min_size=1, max_size=16),
    max_tokens=st.integers(0, 24),
    seed=st.integers(0, 1000),
    stop=st.sampled_from([(), ("e",), ("\n\n",), ("a", " t")]),
    strip=st.booleans(),
)
def test_the_state_after_an_answer_is_that_of_its_text_read_in_one_go(
    runtime, engine, tokenizer, prompt, max_tokens, seed, stop, strip
):
    template = WorldTemplate(tokenizer)
    canonical = template.answer_ids if strip else tokenizer.encode
    request = Request(
        runtime.zero_state(),
        prompt,
        max_tokens=max_tokens,
        sampling=Sampling(seed=seed, top_p=1, temperature=2),
        stop=stop,
        stop_ids=tokenizer.eos_ids,
        strip=strip,
        canonical=canonical,
    )
    *deltas, done = engine.submit(request)
    assert "".join(event.text for event in deltas if isinstance(event, Delta)) == done.text
    _, whole = runtime.forward([*prompt, *canonical(done.text)], runtime.zero_state())
    assert done.state.derivation == whole.derivation
    assert differ(runtime, done.state, whole) <= TOLERANCE


def test_an_answer_is_the_greedy_loop_over_the_bare_runtime(runtime, engine, tokenizer):
    prompt = tokenizer.encode("User: the other one")
    logits, state = runtime.forward(prompt, runtime.zero_state())
    decoder, text = StreamDecoder(), ""
    for _ in range(20):
        token = int(logits.argmax())
        text += decoder.push(tokenizer.decode_bytes([token]))
        logits, state = runtime.forward([token], state)
    request = Request(
        runtime.zero_state(), prompt, max_tokens=20, sampling=Sampling(temperature=0), strip=False
    )
    assert engine.submit(request).result().text == text


def test_checkpoints_are_the_states_of_shorter_prompts(runtime, engine):
    prompt = list(range(1, 18))
    done = engine.submit(Request(runtime.zero_state(), prompt, checkpoints=(3, 7, 17))).result()
    for at, state in zip((3, 7, 17), done.checkpoints, strict=True):
        _, whole = runtime.forward(prompt[:at], runtime.zero_state())
        assert state.derivation == whole.derivation
        assert differ(runtime, state, whole) <= TOLERANCE


def test_a_crowd_gets_what_each_gets_alone(runtime, tokenizer):
    def request(n: int) -> Request:
        return Request(
            runtime.zero_state(),
            tokenizer.encode(f"User: {n} " + "the other one " * (n % 5)),
            max_tokens=5 + n,
            sampling=Sampling(temperature=0),
        )

    crowd = Engine(runtime, tokenizer, slots=4, prefill_budget=7, prefill_chunk=20)
    handles = [crowd.submit(request(n)) for n in range(12)]
    found = [handle.result() for handle in handles]
    crowd.close()
    alone = Engine(runtime, tokenizer, slots=1)
    for n, done in enumerate(found):
        expected = alone.submit(request(n)).result()
        assert done.text == expected.text
        assert done.state.derivation == expected.state.derivation
        assert differ(runtime, done.state, expected.state) <= TOLERANCE
    alone.close()


def test_the_same_seed_gives_the_same_answer(runtime, engine, tokenizer):
    request = Request(
        runtime.zero_state(),
        tokenizer.encode("User: Hi"),
        max_tokens=30,
        sampling=Sampling(seed=5, temperature=1.5, top_p=1, presence_penalty=0.2),
    )
    assert engine.submit(request).result().text == engine.submit(request).result().text


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-300, "seed": -1},
        {"temperature": 1e300, "top_k": 2**63, "seed": 2**70},
        {"temperature": 1, "top_p": 1e-300, "presence_penalty": 1e308},
        {"temperature": 1, "top_p": 1, "frequency_penalty": -1e308, "penalty_decay": 5e-324},
    ],
)
def test_extreme_settings_answer_at_construction_and_in_a_call(request, make, extreme):
    model = request.getfixturevalue(make)
    told, called = model(7, max_tokens=8, **extreme), model(7, max_tokens=8)
    if "seed" in extreme:
        assert _text(told.invoke("Hi")) == _text(called.invoke("Hi", **extreme))
    else:
        assert told.invoke("Hi") is not None
        assert called.invoke("Hi", **extreme) is not None


@pytest.mark.parametrize("make", ["make_chat", "make_llm"])
@pytest.mark.parametrize("name", ["temperature", "presence_penalty", "frequency_penalty", "top_p"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 10**400])
def test_numbers_out_of_range_are_refused_at_construction_and_in_a_call(request, make, name, value):
    model = request.getfixturevalue(make)
    with pytest.raises(ValueError, match=name):
        model(7, **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be"):
        model(7).invoke("Hi", **{name: value})


def _text(answer):
    return getattr(answer, "content", answer)
