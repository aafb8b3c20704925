"""Requests refuse what makes no sense, with the value and the range."""

from __future__ import annotations

import pytest

from langchain_rwkv_state.engine import Request, Sampling
from tests.helpers.fake_runtime import FakeRuntime

ZERO = FakeRuntime().zero_state()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, r"0 or more.*got -0\.1"),
        ("temperature", float("nan"), "got nan"),
        ("temperature", float("inf"), "got inf"),
        ("top_p", 0, r"in \(0, 1\].*got 0"),
        ("top_p", 1.1, r"got 1\.1"),
        ("top_k", -1, "0 or more.*got -1"),
        ("presence_penalty", float("nan"), "a finite number, got nan"),
        ("frequency_penalty", float("inf"), "a finite number, got inf"),
        ("penalty_decay", 1.5, r"in \[0, 1\].*got 1\.5"),
        ("penalty_decay", -1, "got -1"),
        ("temperature", "hot", "got 'hot'"),
        ("temperature", None, "got None"),
        ("temperature", True, "got True"),
        ("top_k", 1.5, r"a whole number, 0 or more.*got 1\.5"),
        ("seed", "a", "a whole number.*got 'a'"),
        ("temperature", 10**400, "0 or more.*got 1000"),
        ("presence_penalty", -(10**400), "a finite number, got -1000"),
        ("top_k", -(10**400), "0 or more.*got -1000"),
    ],
)
def test_sampling_out_of_range_is_refused(name, value, message):
    with pytest.raises(ValueError, match=f"{name} must be .*{message}"):
        Sampling(**{name: value})


def test_a_number_that_python_does_not_write_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"0 or more.*got one of thousands of digits"):
        Sampling(temperature=10**5000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": -1}, "max_tokens must be a whole number, 0 or more.*got -1"),
        ({"max_tokens": 1.5}, "a whole number"),
        ({"stop": ("a", "")}, "none of them empty"),
        ({"stop": "ab"}, "must be a tuple"),
        ({"prompt": (), "max_tokens": 1}, "at least one id"),
        ({"checkpoints": (3,)}, "prompt of 2 ids, got 3"),
        ({"checkpoints": (-1,)}, "got -1"),
        ({"deadline": -1}, "deadline must be 0 or more.*got -1"),
        ({"deadline": "soon"}, "got 'soon'"),
    ],
)
def test_requests_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Request(**{"base": ZERO, "prompt": (1, 2)} | settings)


def test_a_prompt_changed_afterwards_does_not_change_the_request():
    prompt = [1, 2]
    request = Request(ZERO, prompt)
    prompt.append(3)
    assert request.prompt == (1, 2)
