"""`text_loss`: how well a model foresees a text, as one number.

It is the yardstick for changes of a model, not for memory: a text's words mostly follow from their
near neighbours. The easy mistake is to compare losses of two tokenizers: they are per token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from langchain_rwkv_state.runtime.base import Runtime


def text_loss(runtime: Runtime, tokens: Sequence[int]) -> float:
    """Returns the mean negative log-likelihood of each token after the first, in nats.

    ``-1/(n-1) * sum(ln p(token[i] | token[0..i-1]))``, read token by token from the zero state,
    with the logarithm of the softmax in fp64. Its exponential is the perplexity.

    Args:
        runtime: The model.
        tokens: A text as ids, at least two.

    Raises:
        ValueError: There are fewer than two tokens, or one is out of range.
        ModelLoadError: The runtime was closed.

    Example:
        >>> text_loss(runtime, tokenizer.encode("Once upon a time"))  # doctest: +SKIP
        2.31
    """
    if len(tokens) < 2:
        raise ValueError(
            f"A loss needs at least two tokens, one to read and one to foresee; got {len(tokens)}."
        )
    state, parts = runtime.zero_state(), []
    for token, following in itertools.pairwise(tokens):
        logits, state = runtime.forward([token], state)
        if not 0 <= following < len(logits):
            raise ValueError(
                f"Token {following} is not in the model's vocabulary of {len(logits)}: use the "
                "tokenizer that belongs to the model."
            )
        parts.append(-float(torch.log_softmax(logits.double(), -1)[following]))
    return math.fsum(parts) / len(parts)
