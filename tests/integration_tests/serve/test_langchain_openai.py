"""LangChain's standard integration tests, on the demo model behind the server, by a stock client.

Skipped by LangChain, since a text model reads text alone and one model is served:

- what is not text: `test_pdf_inputs`, `test_audio_inputs`, `test_image_inputs`,
  `test_image_tool_message`, `test_pdf_tool_message`, `test_anthropic_inputs`;
- another model in a call (`test_*_with_model_override`);
- recorded network traffic (`test_stream_time`): there is none.

All else passes: calls of tools and JSON are what decoding is held to, on a model that was never
taught either. ChatOpenAI keeps its connections for the life of the process, so all tests share one
event loop.
"""

from __future__ import annotations

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_rwkv_state.serve import ServeSettings
from tests.helpers.server import serving

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings(
        "ignore:.*is in beta",
        "ignore::DeprecationWarning:langchain_tests",
        "ignore:.*is marked with '@pytest.mark.asyncio'",  # the synchronous ones are, too
    ),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    store = tmp_path_factory.mktemp("served") / "states"
    with serving(ServeSettings(model="demo", store=str(store))) as address:
        yield f"{address}/v1"


class Served(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _served(self, url):
        self.url = url

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        # stream_usage: at another address than OpenAI's, the client asks for none in streams.
        return {
            "model": "demo",
            "base_url": self.url,
            "api_key": "none",
            "stream_usage": True,
            "max_retries": 0,
        }

    @property
    def standard_chat_model_params(self) -> dict:
        return {"temperature": 0, "max_tokens": 128}

    @property
    def structured_output_kwargs(self) -> dict:
        # OpenAI's strict schemas ask for what may be left out, too, as null, and the demo model
        # never saw such JSON: it is held to it, and finds no end of a text in it.
        return {"method": "function_calling"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatOpenAI(**{**self.chat_model_params, "temperature": 0})
        question = [("human", "My name is Zanzibar. What is my name?")]
        chat.invoke(question)
        if stream:
            chunks = list(chat.stream(question))
            answer: AIMessage = sum(chunks[1:], start=chunks[0])
            assert isinstance(answer, AIMessageChunk)
        else:
            answer = chat.invoke(question)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
        return answer


class TestChatCompletions(Served):
    """By ``/v1/chat/completions``."""


class TestResponses(Served):
    """By ``/v1/responses``."""

    @property
    def chat_model_params(self) -> dict:
        return {**super().chat_model_params, "use_responses_api": True}
