"""One made-up conversation: a system prompt, facts told, asked for and corrected, talk, tools.

It yields texts and knows nothing of ids or lengths. The easy mistake is to ask for facts soon
after they are told and nowhere else: in a part of the dialogues ("deserts") nothing is asked for
until the end, so that the state has to carry a fact over everything between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from . import facts, tools, words
from .inventory import Inventory

MOST_FACTS = 9  # that a state of this size is asked to hold at once

DESERT = {"chat": 80, "ask_unknown": 8, "correct": 5, "tell": 3, "ask_persona": 4}
LIVELY = {"ask": 36, "chat": 29, "correct": 10, "tell": 10, "ask_unknown": 9, "ask_persona": 6}
TOOLED = {"use_tool": 66, "chat": 18, "tell": 8, "ask": 8}


@dataclass(frozen=True)
class Turn:
    """What the user (or a tool) says, and the answer."""

    text: str
    answer: str
    speaker: str = "User"


class Dialogue:
    """A conversation in the making: what was told so far and how the assistant must speak.

    Args:
        rng: The source of chance.
        inventory: The source of values.
        room: About how many tokens the dialogue will have; short ones get short system prompts.
        plain: Whether it has no system prompt at all.
    """

    def __init__(
        self, rng: Random, inventory: Inventory, room: int, *, plain: bool = False
    ) -> None:
        self.rng, self.inventory = rng, inventory
        self.known: dict[str, tuple[facts.Fact, str]] = {}
        self.persona: str | None = None
        self.prefix, self.suffix = "", ""
        self.tools: list[tools.Tool] = []
        self.system = ""
        if not plain and rng.random() < 0.58:
            self.system = self._make_system(room)

    # The system prompt ---------------------------------------------------------------------------

    def _make_system(self, room: int) -> str:
        rng = self.rng
        if room >= 160 and rng.random() < (0.4 if room < 700 else 0.25):
            return self._make_tools(room)
        parts: list[str] = []
        if rng.random() < 0.6:
            most = 1 if room < 160 else 4 if room < 300 else 12
            count = min(most, int(rng.expovariate(0.35)) + 1)
            parts = [self.inventory.fill(rng, s) for s in rng.sample(words.PROSE, count)]
        if rng.random() < 0.4:
            self.persona = self.inventory.value(rng, "name")
            _insert(rng, parts, rng.choice(words.PERSONA).replace("{v}", self.persona))
        if rng.random() < 0.45:
            _insert(rng, parts, self._make_manner())
        if rng.random() < 0.08:
            _insert(rng, parts, self._make_user())
        prompt = " ".join(parts)
        if room >= 160 and len(parts) < 7 and rng.random() < 0.2:
            return (prompt + "\n" if prompt else "") + self._make_tools(room)
        return prompt

    def _make_tools(self, room: int) -> str:
        count = self.rng.choices([1, 2, 3, 4], [40, 27, 20, 13])[0] if room >= 220 else 1
        for _ in range(count):
            tool = tools.make_tool(self.rng, self.inventory)
            if all(t.topic != tool.topic and t.name != tool.name for t in self.tools):
                self.tools.append(tool)
        return "\n".join(["Tools:", *(t.line() for t in self.tools)])

    def _make_manner(self) -> str:
        rng = self.rng
        share = rng.random()
        if share < 0.72:
            self.prefix, self.suffix, asks = rng.choice(words.MANNERS)
            return rng.choice(asks)
        word = self.inventory.value(rng, "name")
        quoted = rng.choice([word, f'"{word}"'])
        if share < 0.86:
            self.prefix = f"{word}! "
            return f"{rng.choice(['Begin', 'Start'])} every answer with {quoted}."
        self.suffix = f" {word}!"
        return f"{rng.choice(['End', 'Finish'])} every answer with {quoted}."

    def _make_user(self) -> str:
        fact, form = self.rng.choice(
            [
                (facts.NAME, "The user's name is {v}."),
                (facts.NAME, "The user is called {v}."),
                (facts.CITY, "The user lives in {v}."),
            ]
        )
        value = self.inventory.value(self.rng, fact.kind)
        self.known[fact.key] = (fact, value)
        return form.replace("{v}", value)

    # Turns ---------------------------------------------------------------------------------------

    def say(self, text: str, answer: str, speaker: str = "User") -> Turn:
        """A turn whose answer has the manner that the system prompt asked for."""
        return Turn(text, f"{self.prefix}{answer}{self.suffix}", speaker)

    def tell(self) -> Turn:
        """A fact, or two, that the user had not told before."""
        rng = self.rng
        fact = self._fresh_fact()
        lower = rng.random() < 0.1
        value = self._value(fact, lower)
        text, answer = facts.state(rng, fact, value), fact.acknowledgement.replace("{v}", value)
        self.known[fact.key] = (fact, value)
        share = rng.random()
        if share < 0.09:
            other = self._fresh_fact()
            second = self._value(other, lower)
            self.known[other.key] = (other, second)
            more = facts.state(rng, other, second)
            if more.startswith(("My ", "I ", "I'", "The ")) and rng.random() < 0.7:
                text = text[:-1] + " and " + facts.continued(more)
            else:
                text = f"{text} {more}"
            answer = f"{answer} {other.acknowledgement.replace('{v}', second)}"
        elif share < 0.11:
            text = f"{text} {facts.ask(rng, fact)}"
            answer = fact.answer.replace("{v}", value)
        return self.say(self._noise(text, lower), answer)

    def correct(self) -> Turn:
        """A known fact told anew, with another value."""
        if not self.known:
            return self.tell()
        rng = self.rng
        fact, old = self.known[rng.choice(list(self.known))]
        lower = rng.random() < 0.1
        value = old
        while value == old:
            value = self._value(fact, lower)
        self.known[fact.key] = (fact, value)
        if rng.random() < 0.12:
            text, answer = facts.state(rng, fact, value), fact.acknowledgement
        else:
            text, answer = facts.correct(rng, fact, value), "Understood. " + fact.answer
        return self.say(self._noise(text, lower), answer.replace("{v}", value))

    def ask(self, key: str | None = None) -> Turn:
        """A question for a known fact."""
        if not self.known:
            return self.ask_unknown()
        fact, value = self.known[key or self.rng.choice(list(self.known))]
        if fact.key in ("number", "colour", "food"):  # spelt as the question has it
            fact = facts.main_fact(self.rng, fact.key)
        text = self._noise(facts.ask(self.rng, fact), self.rng.random() < 0.1)
        return self.say(text, fact.answer.replace("{v}", value))

    def ask_unknown(self) -> Turn:
        """A question for a fact that was not told."""
        fact = self._fresh_fact()
        text = self._noise(facts.ask(self.rng, fact), self.rng.random() < 0.1)
        return self.say(text, fact.unknown)

    def ask_persona(self) -> Turn:
        """A question for the assistant's own name."""
        rng = self.rng
        if self.persona:
            text, answer = rng.choice(words.PERSONA_QUESTIONS), f"My name is {self.persona}."
        else:
            text, answer = rng.choice(words.PERSONA_QUESTIONS[:3]), words.SELF
        return self.say(self._noise(text, rng.random() < 0.1), answer)

    def chat(self) -> Turn:
        """Small talk, a remark, or a question that the model has no answer for."""
        rng = self.rng
        share = rng.random()
        if share < 0.5:
            answer = rng.choice(list(words.SMALL_TALK))
            if self.persona and answer == words.SELF:
                return self.ask_persona()
            text = rng.choice(words.SMALL_TALK[answer])
        elif share < 0.85:
            asks = _SAFE_WITH_TOOLS if self.tools else words.OFF_TOPIC
            text, answer = self.inventory.fill(rng, rng.choice(asks)), words.OUT
        elif any(t.kind == "record" for t in self.tools):  # a remark would be a record to file
            return self.ask_unknown()
        else:
            text, answer = self.inventory.fill(rng, rng.choice(words.REMARKS)), words.REMARK
        return self.say(self._noise(text, rng.random() < 0.1), answer)

    def use_tool(self) -> Iterator[Turn]:
        """A question that needs a tool, the call, and mostly the result."""
        rng = self.rng
        tool = rng.choice(self.tools)
        alone = sum(t.kind == tool.kind for t in self.tools) == 1
        asked = tools.request(rng, self.inventory, tool, alone)
        text = asked.text
        if text.endswith((".", "?")) and not text.endswith("tool.") and rng.random() < 0.12:
            text = text[:-1]
        yield Turn(text, tools.call_text(tool.name, asked.arguments))
        if rng.random() < 0.8:
            back, answer = tools.result(rng, self.inventory, tool, asked)
            yield self.say(back, answer, "Tool")

    def turns(self, near_end: Callable[[], bool]) -> Iterator[Turn]:
        """Turns without end; the caller stops when the dialogue is long enough.

        Args:
            near_end: Whether only a few turns are left; then what was told long ago is asked for.
        """
        rng = self.rng
        if self.tools and rng.random() < 0.75:
            while True:
                yield from self._turn(_draw(rng, TOOLED))
        shares = DESERT if rng.random() < 0.4 else LIVELY
        if self.persona and rng.random() < 0.5:
            yield self.ask_persona()
        for _ in range(rng.choice([1, 1, 2, 3, 4])):
            yield self.tell()
            if rng.random() < 0.15:
                yield self.correct()
        while not near_end():
            yield from self._turn(_draw(rng, shares))
        while True:
            keys = list(self.known)
            rng.shuffle(keys)
            for key in keys:
                yield self.ask(key)
            yield self.ask_unknown()

    def _turn(self, what: str) -> Iterator[Turn]:
        if what == "use_tool" or (what == "chat" and self.tools and self.rng.random() < 0.3):
            yield from self.use_tool()
        elif what == "tell" and len(self.known) >= MOST_FACTS:
            yield self.ask()
        else:
            make: Callable[[], Turn] = getattr(self, what)
            yield make()

    def _fresh_fact(self) -> facts.Fact:
        missing = [k for k in facts.MAIN_KEYS if k not in self.known]
        if missing and self.rng.random() < 0.7:
            return facts.main_fact(self.rng, self.rng.choice(missing))
        while True:
            fact = facts.any_fact(self.rng)
            if fact.key not in self.known:
                return fact

    def _value(self, fact: facts.Fact, lower: bool) -> str:
        value = self.inventory.value(self.rng, fact.kind)
        return value.lower() if lower else value

    def _noise(self, text: str, lower: bool) -> str:
        """Leads, missing full stops and lower case, as people type."""
        rng = self.rng
        share = rng.random()
        if share < 0.05:
            lead = rng.choice(["By the way, ", "Please, ", "So, ", "Well, ", "Hey, ", "And "])
            text = lead + facts.continued(text)
        elif share < 0.07:
            text = rng.choice(["Hello! ", "Ok. ", "Thanks. ", "Hi. "]) + text
        if lower:
            text = text.lower()
        if text[-1] in ".?!":
            end = rng.random()
            if end < 0.15:
                text = text[:-1]
            elif end < 0.2 and text[-1] == ".":
                text = text[:-1] + "!"
        return text


def _insert(rng: Random, parts: list[str], part: str) -> None:
    parts.insert(rng.randint(0, len(parts)), part)


def _draw(rng: Random, shares: dict[str, int]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


_WITH_TOOLS_UNCLEAR = ("{n}", "of {", "Call", "Find", "in {C}", "joke", "price", "Write")
_SAFE_WITH_TOOLS = [t for t in words.OFF_TOPIC if not any(s in t for s in _WITH_TOOLS_UNCLEAR)]
