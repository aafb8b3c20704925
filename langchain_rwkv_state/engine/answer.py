"""Tells apart what a model says: its thought, its answer, and what ends either.

It deals in text and knows no tokens. The tag behind a thought is held back as a stop text is, so
that half a tag is never shown; half a tag at the very end is left out.
"""

from __future__ import annotations

from langchain_rwkv_state.engine.request import Delta, Request, Thought
from langchain_rwkv_state.engine.stop import StopMatcher


class Answer:
    """Takes the text of one answer, as it comes.

    Args:
        request: Says how thought and answer are delimited.
    """

    def __init__(self, request: Request) -> None:
        # In pieces: a text that grows by a piece is copied whole each time.
        self._said: list[str] = []
        self._thought: list[str] | None = None
        self._tag: Thought | None = request.thought
        self._awaited = "" if self._tag is None else self._tag.opening  # until it was said
        self._opening = ""  # of the thought, as far as it was read
        self._n_before = 0  # characters that came before what may be the answer
        self._thinking: StopMatcher | None = None
        if self._tag is not None:
            stops = [self._tag.closing] if self._tag.closing else []
            self._thought = [] if stops and self._tag.asked else None
            self._thinking = StopMatcher(stops, roles=request.roles, strip=True)
        self._matcher = StopMatcher(
            request.stop, roles=request.roles, strip=request.strip, before=request.continued
        )

    @property
    def text(self) -> str:
        """The answer so far, without what it was continued from."""
        return "".join(self._said)

    @property
    def thought(self) -> str | None:
        """The thought so far, ``None`` where there is to be none."""
        return None if self._thought is None else "".join(self._thought)

    @property
    def thinks(self) -> bool:
        """Whether the thought goes on."""
        return self._thinking is not None

    @property
    def stopped(self) -> bool:
        """Whether an end was found; what comes after it is ignored."""
        return self._matcher.stopped or (self._thinking is not None and self._thinking.stopped)

    @property
    def begins(self) -> int:
        """How many characters of all that was said come before `text`, once there is some."""
        return self._n_before + self._matcher.skipped

    @property
    def held(self) -> str:
        """Text that is not let out yet."""
        return self._opening + (self._thinking or self._matcher).held

    def push(self, text: str) -> Delta | None:
        """Takes the next piece and returns what is sure to belong to thought or answer."""
        if self._thinking is None:
            return self._let_out(text=self._matcher.push(text))
        behind = self._behind_opening(text)
        if behind is None:
            known, self._opening, self._thinking = self._opening + text, "", None
            self._n_before = 0
            return self._let_out(text=self._matcher.push(known))
        self._n_before += len(text)
        if self._tag is not None and not self._tag.closing:
            self._thinking = self._thinking if self._awaited else None
            self._n_before -= len(behind)
            return self._let_out(text=self._matcher.push(behind))
        thought = self._thinking.push(behind)
        if self._tag is None or self._thinking.end != self._tag.closing:
            return self._let_out(thought=thought)
        rest, self._thinking = self._thinking.rest, None
        self._n_before -= len(rest)
        return self._let_out(thought=thought, text=self._matcher.push(rest))

    def ignore_stops(self) -> None:
        """Lets no stop text end the answer any more: it is held to a form from here on."""
        self._matcher.ignore_stops()

    def flush(self, *, cut: bool) -> Delta | None:
        """Returns what was held back, now that no more text comes.

        Args:
            cut: Whether more would have come: half an opening then is no text.
        """
        if self._thinking is None:
            return self._let_out(text=self._matcher.flush())
        if self._thought is None:  # nothing but what may have become the opening
            rest, self._opening, self._thinking = self._opening, "", None
            self._n_before = 0
            rest = "" if cut and rest.strip() else rest
            said = self._matcher.push(rest)
            return self._let_out(text=said + self._matcher.flush())
        self._opening = ""
        return self._let_out(thought=self._thinking.flush(whole=False))

    def _behind_opening(self, text: str) -> str | None:
        """Returns a thought's text without the opening that it may begin with.

        ``None`` where nobody asked for a thought, and the model began none.
        """
        if self._tag is None or not self._awaited:
            return text
        known, opening = self._opening + text, self._awaited
        said = known if self._tag.asked else known.lstrip()
        if len(said) < len(opening) and opening.startswith(said):
            self._opening = known
            return ""
        if not self._tag.asked:
            if not said.startswith(opening):
                return None
            self._thought = []
        self._opening = self._awaited = ""
        return said.removeprefix(opening)

    def _let_out(self, *, text: str = "", thought: str = "") -> Delta | None:
        if not text and not thought:
            return None
        self._said.append(text)
        if thought:
            self._thought = self._thought or []
            self._thought.append(thought)
        return Delta(text, thought)
