"""Makes a chat model over a fake runtime that says what it was told, in whatever ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.engine import Engine
from langchain_rwkv_state.loaded import Loaded
from langchain_rwkv_state.prompt.template import ChatTemplate, G1Template
from langchain_rwkv_state.tokenizer import WorldTokenizer
from tests.helpers.fake_runtime import FakeRuntime

WORLD = WorldTokenizer()


class ScriptedChat:
    """A `ChatRWKV` and its script.

    Args:
        template: How conversations are written down.
        settings: Those of the model.
    """

    def __init__(self, template: type[ChatTemplate] = G1Template, **settings: Any) -> None:
        self.runtime = FakeRuntime(65_536)
        known: dict[str, Any] = {
            "store": MemoryStateStore(),
            "prefix_cache": False,
            "temperature": 0,
        }
        known |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        self.chat = ChatRWKV(model="demo", **known | settings)
        self.engine = Engine(self.runtime, WORLD)
        self.chat._loaded = Loaded(
            self.runtime, WORLD, template(WORLD), self.engine, self.runtime.zero_state()
        )

    def will_say(
        self,
        said: str | Sequence[int],
        messages: str | Sequence[BaseMessage] = "Hi.",
        *,
        ends: bool = True,
        **options: Any,
    ) -> None:
        """Scripts what the model says after messages, raw, from its prompt's end on."""
        ids = WORLD.encode(said) if isinstance(said, str) else list(said)
        prompt = self.prompt(messages, **options)
        self.runtime.script(prompt, [*ids, 0] if ends else ids)

    def prompt(self, messages: str | Sequence[BaseMessage], **options: Any) -> Sequence[int]:
        """Returns the ids that are read before an answer."""
        given = [HumanMessage(messages)] if isinstance(messages, str) else list(messages)
        return self.chat.plan_call(given, None, options)[1].request.prompt

    def close(self) -> None:
        """Ends its worker."""
        self.engine.close()


def in_bytes(text: str) -> list[int]:
    """Returns ids of a text byte by byte: the least canonical ones."""
    return [byte + 1 for byte in text.encode()]
