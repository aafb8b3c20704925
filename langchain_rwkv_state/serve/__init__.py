"""Serves a model by OpenAI's protocol: its conversations are states, and any turn can be branched.

`make_app` gives an ASGI application (FastAPI) over a model and a store. It needs the extra
``serve``. Which protocol says what is for `chat`, `completions` and `responses`; how an answer is
made is for `answers`, who asks for it for `tenants`.
"""

from langchain_rwkv_state.serve.app import make_app
from langchain_rwkv_state.serve.settings import ServeSettings

__all__ = ["ServeSettings", "make_app"]
