"""One made-up conversation: a system prompt, facts told, asked for and corrected, talk, tools.

It yields texts and knows nothing of ids or lengths. Do not ask for facts soon
after they are told and nowhere else: in a part of the dialogues ("deserts") nothing is asked for
until the end, so that the state has to carry a fact over everything between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from . import facts, records, tools, words
from .inventory import Inventory
from .signature import call_text, compact, result_text, tool_list

MOST_FACTS = 9  # that a state of this size is asked to hold at once

DESERT = {"chat": 80, "ask_unknown": 8, "correct": 5, "tell": 3, "ask_persona": 4}
LIVELY = {"ask": 36, "chat": 29, "correct": 10, "tell": 10, "ask_unknown": 9, "ask_persona": 6}
TOOLED = {"use_tool": 58, "use_two": 16, "not_listed": 5, "chat": 12, "tell": 5, "ask": 4}


@dataclass(frozen=True)
class Turn:
    """What the user says, and the answer; `before` are turns of the user's without an answer."""

    text: str
    answer: str
    before: tuple[str, ...] = ()


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
        self.schema: records.Schema | None = None
        self.bare = False  # whether the object is the whole answer, and not a call
        self.system = ""
        if not plain and rng.random() < (0.82 if room < 700 else 0.58):
            self.system = self._make_system(room)

    # The system prompt ---------------------------------------------------------------------------

    def _make_system(self, room: int) -> str:
        rng = self.rng
        share = rng.random()
        if room >= 160 and share < (0.66 if room < 700 else 0.3):
            return self._make_tools(room)
        if room >= 160 and share < (0.86 if room < 700 else 0.38):
            return self._make_schema()
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
        counts = [1] if room < 200 else [1, 2, 3, 4, 5]
        count = self.rng.choices(counts, [12, 28, 40, 12, 8][: len(counts)])[0]
        self.tools = tools.make_tools(self.rng, self.inventory, count)
        return tool_list([t.line() for t in self.tools])

    def _make_schema(self) -> str:
        rng = self.rng
        self.schema = records.make_schema(rng, self.inventory)
        self.bare = rng.random() < 0.5
        lines = []
        if rng.random() < 0.3:
            lines.append(" ".join(rng.sample(words.PROSE, rng.choice([1, 1, 2]))))
            lines = [self.inventory.fill(rng, line) for line in lines]
        if not self.bare:
            return "\n".join([*lines, tool_list([self.schema.line()])])
        if rng.random() < 0.1:
            self.tools = tools.make_tools(rng, self.inventory, rng.choice([1, 2]))
            lines.append(tool_list([t.line() for t in self.tools]))
        return "\n".join([*lines, f"Return only JSON: {self.schema.line()}"])

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

    def say(self, text: str, answer: str, before: tuple[str, ...] = ()) -> Turn:
        """A turn whose answer has the manner that the system prompt asked for."""
        return Turn(text, f"{self.prefix}{answer}{self.suffix}", before)

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
            text, answer = self._off_topic(), words.OUT
        else:
            text, answer = self.inventory.fill(rng, rng.choice(words.REMARKS)), words.REMARK
        return self.say(self._noise(text, rng.random() < 0.1), answer)

    def use_tool(self) -> Iterator[Turn]:
        """A question that needs a tool, the call, and mostly the result."""
        rng = self.rng
        tool = rng.choice(self.tools)
        asked = self._request(tool)
        yield Turn(self._unstopped(asked.text), call_text([tools.called(tool, asked)]))
        share = rng.random()
        if share < 0.33:
            back = tools.result(rng, self.inventory, tool, asked)
            yield self.say(result_text(back), f"The result is: {back}")
        elif share < 0.47:
            why = tools.failure(rng, self.inventory, tool)
            yield self.say(result_text(f"Error: {why}"), f"The tool failed: {why}")

    def use_two(self) -> Iterator[Turn]:
        """A question that needs two calls, of one tool or of two."""
        rng = self.rng
        chosen = rng.choices(self.tools, k=2)
        asked = [self._request(t) for t in chosen]
        texts = [a.text for a in asked]
        if rng.random() < 0.75:
            second = texts[1] if texts[1].startswith("I ") else texts[1][0].lower() + texts[1][1:]
            joint = rng.choice([" and ", ", and ", ", then ", " and then ", " and also "])
            text = texts[0].rstrip(".?") + joint + second
        else:
            text = f"{texts[0]} {texts[1]}"
        calls = [tools.called(t, a) for t, a in zip(chosen, asked, strict=True)]
        yield Turn(self._unstopped(text), call_text(calls))
        if rng.random() < 0.5:
            back = [
                tools.result(rng, self.inventory, t, a) for t, a in zip(chosen, asked, strict=True)
            ]
            before = (result_text(back[0]),)
            yield self.say(
                result_text(back[1]), f"The results are: {back[0]} and {back[1]}", before
            )

    def not_listed(self) -> Turn:
        """A question that needs a tool that there is not."""
        rng = self.rng
        for _ in range(20):
            [other] = tools.make_tools(rng, self.inventory, 1)
            like = [t for t in self.tools if t.kind == other.kind]
            if other.kind not in ("single", "style", "party") and tools.fits(other, self.tools):
                if other.kind == "seek" and like:
                    continue
                text = tools.request(rng, self.inventory, other, alone=False).text
                if not self._about_tools(text):
                    return self.say(self._unstopped(text), words.OUT)
        return self.chat()

    def fill(self) -> Turn:
        """A sentence, and the object that the system prompt wants of it."""
        assert self.schema is not None
        filled = records.fill(self.rng, self.inventory, self.schema)
        answer = compact(filled.value)
        if not self.bare:
            answer = call_text([{"name": self.schema.name, "arguments": filled.value}])
        return Turn(self._unstopped(filled.text), answer)

    def fill_keys(self) -> Turn:
        """A sentence, and the object with the keys that the user asks for."""
        while True:
            schema = records.make_schema(self.rng, self.inventory)
            if all("boolean" not in p.type for p, _ in schema.fields):
                filled = records.fill(self.rng, self.inventory, schema)
                if filled.value:
                    break
        return Turn(records.with_keys(self.rng, filled), compact(filled.value))

    def _request(self, tool: tools.Tool) -> tools.Request:
        alone = sum(t.kind == tool.kind for t in self.tools) == 1
        return tools.request(self.rng, self.inventory, tool, alone)

    def _off_topic(self) -> str:
        for _ in range(40):
            text = self.inventory.fill(self.rng, self.rng.choice(words.OFF_TOPIC))
            if not self.tools or not self._about_tools(text):
                return text
        return "Can you sing?"

    def _about_tools(self, text: str) -> bool:
        """Whether a text might be taken for a question to a tool of the list."""
        said = set(_WORD.findall(text.lower()))
        if any(said & {*t.topic.lower().split(), *t.name.lower().split("_")} for t in self.tools):
            return True
        kinds = {t.kind for t in self.tools}
        return bool(
            (kinds & {"pair", "single"} and any(c.isdigit() for c in text))
            or ("seek" in kinds and said & {"find", "search", "look", "about", "show"})
        )

    def _unstopped(self, text: str) -> str:
        if text.endswith((".", "?")) and not text.endswith("tool.") and self.rng.random() < 0.12:
            return text[:-1]
        return text

    def turns(self, near_end: Callable[[], bool]) -> Iterator[Turn]:
        """Turns without end; the caller stops when the dialogue is long enough.

        Args:
            near_end: Whether only a few turns are left; then what was told long ago is asked for.
        """
        rng = self.rng
        while self.schema:
            if self.tools and rng.random() < 0.4:
                yield from self.use_tool()
            else:
                yield self.fill()
        if self.tools and rng.random() < 0.85:
            while True:
                yield from self._turn(_draw(rng, TOOLED))
        yield from self._remember(near_end)

    def _remember(self, near_end: Callable[[], bool]) -> Iterator[Turn]:
        """Facts told, other turns, and at the end what was told long ago asked for."""
        rng = self.rng
        if not self.system and rng.random() < 0.32:
            for _ in range(3):
                yield self.fill_keys()
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
        if what == "use_tool" or (what == "chat" and self.tools and self.rng.random() < 0.2):
            yield from self.use_tool()
        elif what == "use_two":
            yield from self.use_two()
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


_WORD = re.compile(r"\w+")
