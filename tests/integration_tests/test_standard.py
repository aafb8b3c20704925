"""LangChain's standard integration tests, on the demo model.

Left out (skipped by LangChain, since this release has neither tools nor structured output, and a
text model reads text alone):

- tools: `test_tool_calling`, `test_tool_calling_async`, `test_bind_runnables_as_tools`,
  `test_tool_message_histories_string_content`, `test_tool_message_histories_list_content`,
  `test_tool_choice`, `test_tool_calling_with_no_arguments`, `test_tool_message_error_status`,
  `test_structured_few_shot_examples`, `test_agent_loop`, `test_unicode_tool_call_integration`;
- structured output: `test_structured_output`, `test_structured_output_async`,
  `test_structured_output_pydantic_2_v1`, `test_structured_output_optional_param`,
  `test_json_mode`;
- what is not text: `test_pdf_inputs`, `test_audio_inputs`, `test_image_inputs`,
  `test_image_tool_message`, `test_pdf_tool_message`, `test_anthropic_inputs`;
- another model in a call (`test_*_with_model_override`): a `ChatRWKV` is one model;
- recorded network traffic (`test_stream_time`): there is none.
"""

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.messages import STATE_KEY, marker

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
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

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
