"""`text_loss`: the mean negative log-likelihood of a text, in nats."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from langchain_rwkv_state.runtime import text_loss
from langchain_rwkv_state.runtime.checkpoint import read_tensors
from langchain_rwkv_state.toolbox.reference import ReferenceModel

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("version", [4, 5.2, 6, 7])
def test_it_is_the_mean_of_what_the_formulas_say(load, tmp_path, version):
    runtime = load(version)
    reference = ReferenceModel(read_tensors(tmp_path / f"{version}-0.pth"))
    state, parts = reference.zero_tensors(), []
    for token, following in itertools.pairwise(TOKENS):
        logits, state = reference.step(token, state)
        parts.append(-float(logits.double().log_softmax(-1)[following]))
    assert text_loss(runtime, TOKENS) == pytest.approx(sum(parts) / len(parts), abs=1e-5)


class Uniform:
    """A runtime that knows nothing: every token is as likely as any other."""

    def zero_state(self):
        return None

    def forward(self, tokens, state):
        return torch.zeros(32), state


def test_who_knows_nothing_loses_the_logarithm_of_the_vocabulary():
    assert text_loss(Uniform(), TOKENS) == pytest.approx(math.log(32))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[], [1]])
def test_fewer_than_two_tokens_are_refused(load, tokens):
    with pytest.raises(ValueError, match=f"at least two tokens.*got {len(tokens)}"):
        text_loss(load(4), tokens)


def test_tokens_of_another_vocabulary_are_refused(load):
    for tokens in ([1, 288], [288, 1], [1, -1]):
        with pytest.raises(ValueError, match="vocabulary of 288"):
            text_loss(load(4), tokens)
