"""What is not in this release says so, and what works instead."""

import pytest
from pydantic import BaseModel

from langchain_rwkv_state import ChatRWKV


class Answer(BaseModel):
    """An answer."""

    text: str


def add(x: int) -> int:
    """Adds one."""
    return x + 1


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda chat: chat.bind_tools([add]), "Tool calling"),
        (lambda chat: chat.bind_tools([add], tool_choice="any", strict=True), "Tool calling"),
        (lambda chat: chat.with_structured_output(Answer), "Structured output"),
        (lambda chat: chat.with_structured_output(Answer, method="json_mode"), "Structured output"),
    ],
)
def test_tools_and_structured_output_say_what_works_instead(ask, what):
    chat = ChatRWKV(model="demo")
    with pytest.raises(NotImplementedError, match=rf"{what} is not in this .*JsonOutputParser\(\)"):
        ask(chat)
