"""Says what an answer of a completion says of itself: its id and model, and what it cost."""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

from langchain_rwkv_state._version import __version__
from langchain_rwkv_state.serve.tenants import Tenant


def about(tenant: Tenant, model: str, kind: str, prefix: str) -> dict[str, Any]:
    """Returns what stands before an answer.

    Args:
        tenant: Who asked.
        model: What clients call the model.
        kind: OpenAI's ``object``.
        prefix: What its id begins with.
    """
    runs = f"{tenant.chat.loaded().runtime.fingerprint} {__version__}"
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"fp_{hashlib.sha256(runs.encode()).hexdigest()[:10]}",
    }


def usage(*, read: int, cached: int, answered: int, thought: int = 0) -> dict[str, Any]:
    """Returns what an answer cost.

    Args:
        read: Tokens that it stands on.
        cached: Those of them that had not to be read.
        answered: Tokens of the answer.
        thought: Those of them that were a thought.
    """
    return {
        "prompt_tokens": read,
        "completion_tokens": answered,
        "total_tokens": read + answered,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": thought,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
