"""Serves a model by OpenAI's protocol: its conversations are states, and any turn can be branched.

`make_app` gives an ASGI application (FastAPI) over a model and a store. It needs the extra
``serve``. Which protocol says what is for `chat`, `completions` and `responses`; how an answer is
made is for `answers`, who asks for it for `tenants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.serve.settings import Limits, ServeError, ServeSettings

if TYPE_CHECKING:
    from langchain_rwkv_state.serve.app import make_app

__all__ = ["Limits", "ServeError", "ServeSettings", "make_app"]


def __getattr__(name: str) -> Any:
    """Imports what needs the extra once somebody asks for it."""
    if name != "make_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from langchain_rwkv_state.serve.server import require_extra

    require_extra()
    from langchain_rwkv_state.serve.app import make_app

    return make_app
