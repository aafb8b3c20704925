"""Runs one turn of a session in a process of its own: ``python -m tests.helpers.elsewhere``.

Takes a JSON object (model, store, session, text) and prints one (answer, reference, distribution).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from langchain_rwkv_state import ChatRWKV
from tests.helpers.law import next_token


def turn(model: str, store: str, session: str, text: str, max_tokens: int = 48) -> dict[str, Any]:
    """Answers one text of a session."""
    chat = ChatRWKV(model=model, store=store, temperature=0, max_tokens=max_tokens)
    bob = chat.with_session(session)
    before = bob.head
    next_logits = next_token(chat, chat.store.get(before))[0].tolist() if before else None
    answer = bob.invoke(text)
    return {"before": before, "next": next_logits, "text": answer.content, "head": bob.head}


def turn_elsewhere(**what: Any) -> dict[str, Any]:
    """Does the same in another process."""
    return elsewhere("tests.helpers.elsewhere", **what)


def elsewhere(module: str, **what: Any) -> dict[str, Any]:
    """Runs a module in another process, with JSON in and out."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module],
        input=json.dumps(what),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    json.dump(turn(**json.load(sys.stdin)), sys.stdout)
