"""Makes chat requests whose answers a fake runtime was told beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_rwkv_state.engine import Request, Sampling
from langchain_rwkv_state.prompt.template import DemoTemplate
from langchain_rwkv_state.tokenizer import WorldTokenizer
from tests.helpers.fake_runtime import FakeRuntime

WORLD = WorldTokenizer()
TEMPLATE = DemoTemplate(WORLD)
GREEDY = Sampling(temperature=0)


def scripted(
    runtime: FakeRuntime, prompt: Sequence[int], answer: Sequence[int], /, **settings: Any
) -> Request:
    """Returns a greedy chat request; after `prompt` the runtime will say `answer`, id by id.

    `settings` replace the request's own, its prompt too.
    """
    runtime.script(prompt, answer)
    known: dict[str, Any] = {
        "base": runtime.zero_state(),
        "prompt": prompt,
        "max_tokens": 50,
        "sampling": GREEDY,
        "stop": TEMPLATE.stops,
        "stop_ids": WORLD.eos_ids,
        "canonical": TEMPLATE.answer_ids,
    }
    return Request(**known | settings)
