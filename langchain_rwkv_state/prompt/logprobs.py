"""Writes tokens' log-probabilities as OpenAI does, and hands them out beside an answer's content.

Content is words alone: tokens of a thought and of calls have no entries. In a stream each token
comes with the piece that its first character is in, so that the pieces' lists joined are the whole
answer's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from langchain_rwkv_state.engine import TokenLogprob

LOGPROBS_KEY = "logprobs"
"""Where LangChain's integrations have them, in an answer's metadata."""


def as_openai(entries: Iterable[TokenLogprob]) -> dict[str, list[dict[str, Any]]]:
    """Returns tokens as a choice of OpenAI's has them under ``logprobs``.

    Args:
        entries: The tokens. One that a constraint forced has 0.0, and no likeliest beside it.

    Example:
        >>> as_openai([TokenLogprob(1, "a", b"a", -0.5)])["content"]
        [{'token': 'a', 'bytes': [97], 'logprob': -0.5, 'top_logprobs': []}]
    """
    content = [{**_written(each), "top_logprobs": [*map(_written, each.top)]} for each in entries]
    return {"content": content}


def logprobs_metadata(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Returns what an answer's metadata says of tokens: lists join as LangChain merges chunks."""
    return {LOGPROBS_KEY: as_openai(entries)}


def _written(entry: TokenLogprob) -> dict[str, Any]:
    # OpenAI has null for a token that stands for no text.
    return {
        "token": entry.token,
        "bytes": list(entry.bytes) or None,
        "logprob": entry.logprob,
    }


class ContentLogprobs:
    """Hands out tokens as the content comes that they have a part in.

    Args:
        n_known: Number of the content's characters that were there before the first token.
    """

    def __init__(self, n_known: int = 0) -> None:
        self._n_out = -n_known
        self._waiting: deque[TokenLogprob] = deque()

    def add(self, entries: Iterable[TokenLogprob]) -> None:
        """Takes tokens, in order; what has a part in no content stays here."""
        self._waiting += entries

    def take(self, n_characters: int) -> list[TokenLogprob]:
        """Returns the tokens that begin in the next characters of the content."""
        self._n_out += n_characters
        taken = []
        while self._waiting and self._waiting[0].at < self._n_out:
            taken.append(self._waiting.popleft())
        return taken
