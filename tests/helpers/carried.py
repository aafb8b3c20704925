"""Takes a bundle in, in a process of its own: ``python -m tests.helpers.carried``.

Takes a JSON object (model, store, bundle, texts, state) and prints one: the log as it came in, and
the answers of the turns that follow. The head's state goes to the file `state`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from langchain_rwkv_state import ChatRWKV, DiskStateStore
from tests.helpers.elsewhere import elsewhere


def carried(model: str, store: str, bundle: str, texts: list[str], state: str) -> dict[str, Any]:
    """Takes a bundle in and goes on with its conversation."""
    with DiskStateStore(store) as opened:
        info = opened.import_session(bundle)
        log = [asdict(entry) for entry in opened.log(info.session)]
        opened.get(log[0]["ref"]).save(state)
    chat = ChatRWKV(model=model, store=store, temperature=0, max_tokens=48)
    session = chat.with_session(info.session)
    answers = [session.invoke(text).content for text in texts]
    return {"session": info.session, "head": info.head, "log": log, "answers": answers}


def carried_elsewhere(**what: Any) -> dict[str, Any]:
    """Does the same in another process."""
    return elsewhere("tests.helpers.carried", **what)


if __name__ == "__main__":
    json.dump(carried(**json.load(sys.stdin)), sys.stdout)
