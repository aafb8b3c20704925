"""Structured output: a sentence becomes an object of a pydantic model, and always parses.

python examples/structured.py
"""

from __future__ import annotations

from langchain_core.language_models import LanguageModelInput
from pydantic import BaseModel
from rich.console import Console

from langchain_rwkv_state import ChatRWKV, MemoryStateStore


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    city: str


def main() -> None:
    """Fills the model from sentences, in both ways."""
    console = Console()
    chat = ChatRWKV(model="demo", temperature=0, store=MemoryStateStore())
    sentences: list[LanguageModelInput] = [
        "Marlow is 31 years old and lives in Lisbon.",
        "Tilda, aged 58, from Oslo.",
    ]
    for method in ("json_schema", "function_calling"):
        read = chat.with_structured_output(Person, method=method)
        for sentence, person in zip(sentences, read.batch(sentences), strict=True):
            console.print(f"{method}: {sentence} -> {person!r}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
