"""Tells apart what a model says: its thought, its answer, and what ends either.

It deals in text and knows no tokens. The easy mistake is to look for the tag behind a thought in
what was let out: half a tag would be shown first, so the tag is held back as a stop text is, and
half a tag at the very end is left out.
"""

from __future__ import annotations

from langchain_rwkv_state.engine.request import Delta, Request
from langchain_rwkv_state.engine.stop import StopMatcher


class Answer:
    """The text of one answer, as it comes.

    Args:
        request: Says how thought and answer are delimited.

    Attributes:
        text: The answer so far, without what it was continued from.
        thought: The thought so far, ``None`` where there is to be none.
    """

    def __init__(self, request: Request) -> None:
        self.text = ""
        self.thought: str | None = None
        self._opening = request.thought.opening if request.thought else ""  # until it was said
        self._begun = ""  # as much of it as was said
        self._closing = request.thought.closing if request.thought else ""
        self._thinking: StopMatcher | None = None
        if self._closing:
            self.thought = ""
            self._thinking = StopMatcher([self._closing], roles=request.roles, strip=True)
        self._matcher = StopMatcher(
            request.stop, roles=request.roles, strip=request.strip, before=request.continued
        )

    @property
    def thinks(self) -> bool:
        """Whether the thought goes on."""
        return self._thinking is not None

    @property
    def stopped(self) -> bool:
        """Whether an end was found; what comes after it is ignored."""
        return self._matcher.stopped or (self._thinking is not None and self._thinking.stopped)

    @property
    def held(self) -> str:
        """Text that is not let out yet."""
        return self._begun + (self._thinking or self._matcher).held

    def push(self, text: str) -> Delta | None:
        """Takes the next piece and returns what is sure to belong to thought or answer."""
        if self._opening:
            text = self._behind_opening(text)
        if self._thinking is None:
            return self._let_out(text=self._matcher.push(text))
        thought = self._thinking.push(text)
        if self._thinking.end != self._closing:
            return self._let_out(thought=thought)
        rest, self._thinking = self._thinking.rest, None
        return self._let_out(thought=thought, text=self._matcher.push(rest))

    def flush(self) -> Delta | None:
        """Returns what was held back, now that no more text comes."""
        self._begun = ""
        if self._thinking is None:
            return self._let_out(text=self._matcher.flush())
        return self._let_out(thought=self._thinking.flush(whole=False))

    def _behind_opening(self, text: str) -> str:
        """Returns the text without the opening that may stand before it."""
        text, opening = self._begun + text, self._opening
        if len(text) < len(opening) and opening.startswith(text):
            self._begun = text
            return ""
        self._begun = self._opening = ""
        return text.removeprefix(opening)

    def _let_out(self, *, text: str = "", thought: str = "") -> Delta | None:
        if not text and not thought:
            return None
        self.text += text
        if thought:
            self.thought = (self.thought or "") + thought
        return Delta(text, thought)
