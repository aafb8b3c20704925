"""The progress bar of a batch: counts each answer, and draws on terminals alone."""

import io

import pytest
from langchain_core.messages import HumanMessage
from rich.console import Console

from langchain_rwkv_state import progress


def drawn_on(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=80), file


def test_off_a_terminal_nothing_is_drawn():
    console, file = drawn_on(False)
    with progress.counting(3, console) as counters:
        assert counters == []
    assert file.getvalue() == ""


@pytest.mark.parametrize("how", ["batch", "abatch"])
async def test_every_answer_counts(how, make_chat, monkeypatch):
    console, file = drawn_on(True)
    counting = progress.counting
    monkeypatch.setattr(progress, "counting", lambda total: counting(total, console))
    chat = make_chat(7, progress=True, max_tokens=2)
    inputs = ["one", [HumanMessage("two")], "three"]
    answers = chat.batch(inputs) if how == "batch" else await chat.abatch(inputs)
    assert len(answers) == 3
    assert "3/3" in file.getvalue()


def test_failures_count_too(make_chat, monkeypatch):
    console, file = drawn_on(True)
    counting = progress.counting
    monkeypatch.setattr(progress, "counting", lambda total: counting(total, console))
    chat = make_chat(7, progress=True, max_tokens=2)
    results = chat.batch(["one", []], [{"tags": ["a"]}, {}], return_exceptions=True)
    assert isinstance(results[1], ValueError)
    assert "2/2" in file.getvalue()
