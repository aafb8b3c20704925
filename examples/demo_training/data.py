"""Dialogues as ids: made on the fly from a seed, in the exact pieces of the package's template.

Nothing is read from outside. Do not encode a whole line at once: every piece is
encoded on its own, as the package feeds it, or ids differ where pieces meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from .dialogue import Dialogue, Turn
from .inventory import Inventory

SEPARATOR = "\n\n"
END_OF_TEXT_ID = 0
TURN_TOKENS = 26  # of a question and its answer, about
MOST_REMEMBERED = 200_000
KEY_WEIGHT = 2.0  # of an object's keys in the loss
NAME_WEIGHT = 4.0  # of a called tool's name in the loss: which one it is is the hardest choice


@dataclass
class Example:
    """Ids of a dialogue, and for each id whether it belongs to an answer and how much it counts."""

    ids: list[int] = field(default_factory=lambda: [END_OF_TEXT_ID])
    is_answer: list[bool] = field(default_factory=lambda: [False])
    weights: list[float] = field(default_factory=lambda: [0.0])

    def add(self, ids: list[int], *, answer: bool, weights: list[float] | None = None) -> None:
        """Appends ids of one sort."""
        self.ids += ids
        self.is_answer += [answer] * len(ids)
        self.weights += weights or [1.0] * len(ids)


class Encoder:
    """Turns segments into ids, and remembers them: segments recur a lot."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.separator = self(SEPARATOR)
        self._before_name = [self(text) for text in ('{"name":"', '[{"name":"')]
        self._closing = {self(text)[0] for text in ('","', '":"', '":', '":{"', "}")}
        self._before_key = {self(text)[0] for text in ('{"', '","', ',"', '":{"')}
        if len(self.separator) != 1:
            raise ValueError(f"the separator must be one token, not {self.separator}")

    def __call__(self, text: str) -> list[int]:
        """The ids of one segment."""
        ids = self._known.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text).ids
            if len(self._known) < MOST_REMEMBERED:
                self._known[text] = ids
        return ids

    def prompt(self, speaker: str, text: str, first: bool) -> list[int]:
        """A segment of the system or the user, behind its separator."""
        return ([] if first else self.separator) + self(f"{speaker}: {text}")

    def question(self, speaker: str, text: str, first: bool) -> list[int]:
        """Everything up to the place where the assistant answers."""
        return self.prompt(speaker, text, first) + self.separator + self("Assistant:")

    def answer(self, turn: Turn) -> list[int]:
        """The answer and the separator that ends it."""
        return self(" " + turn.answer) + self.separator

    def weights(self, answer: list[int]) -> list[float]:
        """How much each id of an answer counts: names of called tools and keys count more."""
        out, weight = [], 1.0
        for i, token in enumerate(answer):
            if token in self._closing:
                weight = 1.0
            out.append(weight)
            if answer[max(0, i - 2) : i + 1] in self._before_name:
                weight = NAME_WEIGHT
            elif token in self._before_key:
                weight = KEY_WEIGHT
        return out


def example(rng: Random, inventory: Inventory, encoder: Encoder, length: int) -> Example:
    """One dialogue of at most `length` ids, whole turns only, and not much less."""
    while True:
        out = Example()
        dialogue = Dialogue(rng, inventory, length)
        if dialogue.system:
            out.add(encoder.prompt("System", dialogue.system, first=True), answer=False)
        if len(out.ids) <= length * 0.7:
            _fill(rng, dialogue, encoder, out, length)
            if len(out.ids) >= length * 0.4:
                return out


def _fill(rng: Random, dialogue: Dialogue, encoder: Encoder, out: Example, length: int) -> None:
    tail = min(TURN_TOKENS * rng.choice([1, 2, 3, 4, 5]), length // 3)
    for turn in dialogue.turns(lambda: len(out.ids) > length - tail):
        # The separator that ended the last answer is the one that stands before this turn.
        joined = out.is_answer[-1] or len(out.ids) == 1
        before: list[int] = []
        for text in turn.before:
            before += encoder.prompt("User", text, first=joined)
            joined = False
        before += encoder.question("User", turn.text, first=joined)
        answer = encoder.answer(turn)
        if len(out.ids) + len(before) + len(answer) > length:
            return
        out.add(before, answer=False)
        out.add(answer, answer=True, weights=encoder.weights(answer))
