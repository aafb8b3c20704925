"""LangChain's standard integration tests, on the demo model.

Skipped by LangChain, since a text model reads text alone and a `ChatRWKV` is one model:

- what is not text: `test_pdf_inputs`, `test_audio_inputs`, `test_image_inputs`,
  `test_image_tool_message`, `test_pdf_tool_message`, `test_anthropic_inputs`;
- another model in a call (`test_*_with_model_override`);
- recorded network traffic (`test_stream_time`): there is none.
"""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is in beta", "ignore::DeprecationWarning:langchain_tests"
)


class TestChatRWKV(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _weights_stay_loaded(self, demo):
        demo.loaded()

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatRWKV

    @property
    def chat_model_params(self) -> dict:
        return {"model": "demo", "store": MemoryStateStore()}

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
        chat = ChatRWKV(**{**self.chat_model_params, "temperature": 0})
        first = chat.invoke("My name is Zanzibar.")
        turn = [marker(first.response_metadata[STATE_KEY]), HumanMessage("What is my name?")]
        if not stream:
            answer = chat.invoke(turn)
        else:
            chunks = list(chat.stream(turn))
            answer = sum(chunks[1:], start=chunks[0])
            assert isinstance(answer, AIMessageChunk)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
        chat.unload()
        return answer
