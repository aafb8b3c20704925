"""Binds options or a configuration to a chat model so that its sessions have them too.

LangChain's own binding knows no sessions: what it hands on is the model's methods alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableBinding

from langchain_rwkv_state.base import RWKVModel
from langchain_rwkv_state.conversation.session_calls import BoundSession, SessionCalls


class BoundModel(RunnableBinding[LanguageModelInput, AIMessage]):
    """A chat model with options or a configuration bound to it: a session of it keeps them."""

    @classmethod
    def lc_id(cls) -> list[str]:
        """Returns the binding's id: whoever loads it loads a `RunnableBinding`."""
        return RunnableBinding.lc_id()

    def with_session(self, session: str, **kwargs: Any) -> BoundSession:
        """Returns `ChatRWKV.with_session` of the model, with the same options.

        Raises:
            TypeError: What the options are bound to is no model alone, as after `with_retry`.
        """
        return self._bind_to(self._chat.with_session(session, **kwargs))

    def with_sessions(self, *args: Any, **kwargs: Any) -> BoundSession:
        """Returns `ChatRWKV.with_sessions` of the model, with the same options.

        Raises:
            TypeError: What the options are bound to is no model alone, as after `with_retry`.
        """
        return self._bind_to(self._chat.with_sessions(*args, **kwargs))

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Returns `ChatRWKV.bind_tools` of the model, with the same options.

        LangChain's own binding would hand the call on, and drop them.
        """
        return self.bind(**cast("Any", self.bound).bind_tools(tools, **kwargs).kwargs)

    def _bind_to(self, calls: SessionCalls) -> BoundSession:
        """Binds to a session what is bound here."""
        return BoundSession(
            bound=calls,
            kwargs=self.kwargs,
            config=self.config,
            config_factories=self.config_factories,
        )

    @property
    def _chat(self) -> Any:
        chat = self.bound
        if not isinstance(chat, RWKVModel):
            raise TypeError(
                f"A session is a model's, and this is {type(chat).__name__}: take the session "
                "first, chat.with_session(...), and what else is wanted behind it."
            )
        return chat
