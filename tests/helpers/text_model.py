"""A chat model whose state is the text that it read, and which does as it is told: for agents.

The runtime keeps the ids themselves in its state. So what a thread's state stands for can be read
out of it, in whatever process it arose, and what is said next is a function of that text and of
nothing else, as with a model. All above the runtime is the real thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from langchain_core.messages import BaseMessage
from pydantic import PrivateAttr

from langchain_rwkv_state import ChatRWKV
from langchain_rwkv_state.engine import Engine
from langchain_rwkv_state.loaded import Loaded
from langchain_rwkv_state.prompt.plan import ids_of
from langchain_rwkv_state.prompt.template import DemoTemplate
from langchain_rwkv_state.prompt.tools import Call
from langchain_rwkv_state.state import Fingerprint, RWKVState, StateLayout, zero_state
from langchain_rwkv_state.tokenizer import Tokenizer, load_tokenizer

BORDER = "\n\n"
RESULT = "User: Function output:\n"
_IDS = "blocks.0.att_x_prev"
_VOCAB = 288


def obey(text: str) -> str:
    """Answers as the last thing that the user said asks for, step by step.

    Steps are joined by ``, then ``, one an answer. ``call NAME {...} and NAME {...}`` calls tools,
    ``say WORDS`` says them, ``who am I?`` names whom the text names, ``your mail?`` gives an
    address; anything else is told which turn it was. After the last step the last tool's result is
    passed on.
    """
    turns = text.split(BORDER)
    asked = [
        n for n, turn in enumerate(turns) if turn.startswith("User: ") and RESULT not in turn + "\n"
    ]
    last = asked[-1] if asked else 0
    steps = turns[last].removeprefix("User: ").split(", then ")
    behind = turns[last + 1 :]
    done = sum(turn.startswith("Assistant:") for turn in behind)
    results = [turn.removeprefix(RESULT) for turn in behind if turn.startswith(RESULT)]
    if done >= len(steps):
        return f"The result is {results[-1]}." if results else "There is no more to do."
    step = steps[done]
    if step.startswith("call "):
        return DemoTemplate.tools.calls(_calls(step.removeprefix("call ")))
    if step.startswith("say "):
        return step.removeprefix("say ")
    if step == "who am I?":
        names = re.findall(r"(?:User|Assistant): My name is (\w+)", text)
        return f"You are {names[-1]}." if names else "I do not know."
    return "Write to bob@example.com." if step == "your mail?" else f"That was turn {len(asked)}."


def _calls(text: str) -> list[Call]:
    calls: list[Call] = []
    while text:
        name, _, rest = text.partition(" ")
        arguments, end = json.JSONDecoder().raw_decode(rest)
        calls.append((name, arguments))
        text = rest[end:].removeprefix(" and ")
    return calls


class TextRuntime:
    """A `Runtime` whose state holds the ids that it read.

    Args:
        tokenizer: Turns them into text.
        answer: What is said after a text that ends where an answer begins.
        capacity: How many ids a state holds.
        name: Of the model, in fingerprints.
    """

    def __init__(
        self, tokenizer: Tokenizer, answer: Callable[[str], str], *, capacity: int, name: str
    ) -> None:
        self._layout = StateLayout.of(7, n_layer=1, n_embd=capacity, head_size=1)
        self._name = name
        self._tokenizer = tokenizer
        self._answer = answer
        self._template = DemoTemplate(tokenizer)
        border = tokenizer.encode(BORDER)
        self._opening = (*border, *self._template.answer_prompt())
        self._answers: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def layout(self) -> StateLayout:
        return self._layout

    @property
    def fingerprint(self) -> str:
        return str(Fingerprint(self._name, "fp32"))

    @property
    def vocab_size(self) -> int:
        return _VOCAB

    def zero_state(self) -> RWKVState:
        return zero_state(self._layout, self.fingerprint)

    def ids(self, state: RWKVState) -> tuple[int, ...]:
        """Returns what a state stands for."""
        return tuple(map(int, state.shared(_IDS)[: state.n_tokens].tolist()))

    def text(self, state: RWKVState) -> str:
        """Returns what a state stands for, as text."""
        return self._tokenizer.decode(list(self.ids(state)))

    def forward(self, tokens: Sequence[int], state: RWKVState) -> tuple[torch.Tensor, RWKVState]:
        tensors = {name: state.shared(name) for name in state}
        held = state[_IDS].clone()
        end = state.n_tokens + len(tokens)
        held[state.n_tokens : end] = torch.tensor(tokens, dtype=held.dtype)
        tensors[_IDS] = held
        after = state.advanced(tensors, tokens)
        logits = torch.zeros(_VOCAB)
        logits[self._next(self.ids(after))] = 50.0
        return logits, after

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[RWKVState]
    ) -> tuple[torch.Tensor, list[RWKVState]]:
        results = [self.forward(ids, state) for ids, state in zip(tokens, states, strict=True)]
        return torch.stack([logits for logits, _ in results]), [state for _, state in results]

    def close(self) -> None:
        """There is nothing to close."""

    def _next(self, ids: tuple[int, ...]) -> int:
        """Returns what comes next: of the answer that the text calls for, or its end."""
        width = len(self._opening)
        starts = (n for n in range(len(ids) - width, -1, -1) if ids[n] == self._opening[0])
        at = next((n for n in starts if ids[n : n + width] == self._opening), None)
        if at is None:
            return 0
        heard, said = ids[:at], ids[at + width :]
        if heard not in self._answers:
            text = self._answer(self._tokenizer.decode(list(heard)))
            self._answers[heard] = tuple(self._template.answer_ids(text))
        answer = self._answers[heard]
        begun = answer[: len(said)] == said
        return answer[len(said)] if begun and len(said) < len(answer) else 0


@dataclass(frozen=True)
class Heard:
    """What one call of the model was given.

    Attributes:
        before: What its state stood for already.
        read: What it read on top, up to where its answer begins.
    """

    before: str
    read: str


class TextRWKV(ChatRWKV):
    """A `ChatRWKV` over a `TextRuntime`; `text_chat` makes it."""

    _calls: list[Heard] = PrivateAttr(default_factory=list)
    _failures: list[Exception] = PrivateAttr(default_factory=list)

    @property
    def calls(self) -> list[Heard]:
        """What each call was given, in order."""
        return self._calls

    @property
    def failures(self) -> list[Exception]:
        """What the next calls raise, each once."""
        return self._failures

    def text(self, ref: str | None) -> str:
        """Returns what the state of a reference stands for."""
        if ref is None:
            return ""
        runtime = self.loaded().runtime
        assert isinstance(runtime, TextRuntime)
        return runtime.text(self.store.get(ref))

    def text_of(self, messages: Sequence[BaseMessage]) -> str:
        """Returns messages as one text, as they are read from zero."""
        loaded = self.loaded()
        return loaded.tokenizer.decode(list(ids_of(loaded.template.segments(messages, start=True))))

    def close(self) -> None:
        """Ends its worker."""
        self.loaded().engine.close()

    def plan_call(self, messages: Any, stop: Any, options: Any) -> Any:
        if self._failures:
            raise self._failures.pop(0)
        engine, call = super().plan_call(messages, stop, options)
        read = self.loaded().tokenizer.decode(list(call.plan.ids))
        self._calls.append(Heard(self.text(call.plan.base_ref), read))
        return engine, call


def text_chat(
    tokenizer: Any,
    store: Any,
    *,
    answer: Callable[[str], str] = obey,
    capacity: int = 16_384,
    name: str = "text",
    **settings: Any,
) -> TextRWKV:
    """Returns a chat model whose state is the text that it read.

    Args:
        tokenizer: Path of a ``tokenizer.json`` of at most 288 tokens.
        store: Its store.
        answer: What it says after a text.
        capacity: How many ids its states hold.
        name: Of the model, in fingerprints.
        settings: Others of its settings.
    """
    tokens = load_tokenizer(tokenizer, model_path=None, vocab_size=_VOCAB)
    known: dict[str, Any] = {"prefix_cache": False, "temperature": 0, "max_tokens": 512}
    chat = TextRWKV(model="demo", store=store, **known | settings)
    runtime = TextRuntime(tokens, answer, capacity=capacity, name=name)
    chat._loaded = Loaded(
        runtime, tokens, DemoTemplate(tokens), Engine(runtime, tokens), runtime.zero_state()
    )
    return chat
