"""The small RWKV-4 of the benchmarks: its training computes what the `rwkv` package does."""

from __future__ import annotations

from random import Random

import pytest
import safetensors.torch
import torch

from benchmarks.rwkv4_training import MODEL, RWKV4, train, wkv, write
from benchmarks.rwkv4_words import KINDS, VALUES, WORDS, case, filler, ids, lesson
from langchain_rwkv_state.runtime import load_runtime


def test_what_is_trained_is_what_the_package_runs(tmp_path):
    model = train(steps=2)
    runtime = load_runtime(write(model, tmp_path / "m.safetensors"), "cpu fp32")
    text, _ = lesson(Random(3), 40)
    logits, _ = runtime.forward(text, runtime.zero_state())
    with torch.no_grad():
        expected = model.half().float()(torch.tensor([text]))[0, -1]
    runtime.close()
    assert torch.allclose(logits, expected, atol=5e-3)  # the package norms embeddings in fp16


def test_a_seed_gives_one_model():
    one, other = (train(steps=1, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_committed_weights_are_of_this_model():
    shapes = {name: t.shape for name, t in RWKV4(len(WORDS), 2, 128).state_dict().items()}
    assert {n: t.shape for n, t in safetensors.torch.load_file(MODEL).items()} == shapes
    assert MODEL.stat().st_size < 1_500_000


def test_the_recurrence_is_a_mean_that_fades():
    k, v = torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    decay, first = torch.randn(4), torch.randn(4)
    out = wkv(k, v, decay, first)
    for t in range(9):
        age = torch.arange(t - 1, -1, -1).view(-1, 1)
        weights = torch.cat([k[0, :t] - age * decay.exp(), (k[0, t] + first)[None]]).exp()
        mean = (weights * v[0, : t + 1]).sum(0) / weights.sum(0)
        assert torch.allclose(out[0, t], mean, atol=1e-5)


def test_words_have_one_meaning():
    assert len(set(WORDS)) == len(WORDS)
    plain = set(filler(Random(0), 5_000))
    assert not plain & {*KINDS, *VALUES, "?", "<start>"}


def test_an_answer_is_the_last_value_told():
    for seed in range(20):
        text, marks = lesson(Random(seed), 128)
        words, known, asked = [WORDS[each] for each in text], dict[str, str](), 0
        assert len(text) == len(marks) == 128
        for place, word in enumerate(words):
            if word in VALUES:
                if words[place - 1] == "?":
                    assert marks[place]
                    assert word == known[words[place - 2]]
                    asked += 1
                else:
                    known[words[place - 1]] = word
        assert asked == sum(marks) > 0


def test_a_case_asks_for_its_first_fact():
    made = case(Random(1), ["city", "pet"], 30)
    assert made.told[:2] == ("<start>", "city")
    assert made.told[2] == made.answer
    assert made.asked == ("city", "?")
    assert made.between == len(made.told) - 3 >= 30
    with pytest.raises(KeyError):
        ids(["unheard"])
