"""LangChain's standard unit tests, none of them overridden or expected to fail.

Of the environment a model takes the directory of its default store alone.
"""

import importlib

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_rwkv_state import ChatRWKV

pytestmark = [
    pytest.mark.filterwarnings("ignore:The function `load` is in beta"),
    pytest.mark.filterwarnings("ignore:max_retries"),  # the suite passes LangChain's standard ones
    pytest.mark.filterwarnings("ignore:The method `BaseChatModel.dict` was deprecated"),
]


class TestChatRWKV(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _on_langchains_list(self, monkeypatch):
        """Puts this package on the list of classes that ``allowed_objects="all"`` stands for.

        The list is LangChain's own and holds only packages of its partners; anybody else is named
        explicitly, as in `test_chat_models`. The standard test has no way to do so.
        """
        module = importlib.import_module("langchain_core.load.load")
        listed = module._get_default_allowed_class_paths("all")
        with_us = {*listed, tuple(ChatRWKV.lc_id())}
        monkeypatch.setitem(module._default_class_paths_cache, "all", with_us)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatRWKV

    @property
    def chat_model_params(self) -> dict:
        return {"model": "demo"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def init_from_env_params(self) -> tuple[dict, dict, dict]:
        return {"RWKV_STATE_DIR": "states"}, {"model": "demo"}, {"store_location": None}
