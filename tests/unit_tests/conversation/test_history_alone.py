"""A history warns of nothing, and works where LangChain has no base class for it any more."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from langchain_core.chat_history import BaseChatMessageHistory

from langchain_rwkv_state import RWKVStateHistory

_GONE = {
    "as it is": "",
    "without the class": "sys.modules['langchain_core.chat_history'] = None",
}

_USE = """
import asyncio, sys, warnings
warnings.simplefilter("error")
{gone}
from langchain_core.messages import AIMessage, HumanMessage
from langchain_rwkv_state import MemoryStateStore, RWKVStateHistory
from tests.helpers.fake_chat import FakeChat

store = MemoryStateStore()
fake = FakeChat(store=store)
history = RWKVStateHistory("bob", store)
print(len(RWKVStateHistory.__mro__) > 2)

question = HumanMessage("One.")
history.add_messages([question, fake.invoke([*history.messages, question])])
print(fake.told("bob").split())

async def turn():
    question = HumanMessage("Two.")
    answer = await fake.ainvoke([*await history.aget_messages(), question])
    await history.aadd_messages([question, answer])

asyncio.run(turn())
print(store.session("bob").n_turns)
history.add_user_message("Three.")
history.add_user_message(HumanMessage("Four."))
history.add_ai_message("Indeed.")
history.add_ai_message(AIMessage("Well."))
history.add_message(HumanMessage("Five."))
print([message.text for message in history.messages[1:]])
history.clear()
print(store.sessions())
history.add_message(HumanMessage("One."))
asyncio.run(history.aclear())
print(store.sessions())
"""


@pytest.mark.parametrize("gone", _GONE)
def test_a_history_warns_of_nothing_and_needs_no_base_class(gone):
    script = textwrap.dedent(_USE).format(gone=_GONE[gone])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        str(gone == "as it is"),
        "['human:One.', 'ai:heard', '1']",
        "2",
        "['Three.', 'Four.', 'Indeed.', 'Well.', 'Five.']",
        "[]",
        "[]",
    ]


def test_a_history_is_one_of_langchains_while_there_is_such_a_class():
    assert issubclass(RWKVStateHistory, BaseChatMessageHistory)
