"""Settings: what nobody knows is an error that helps, and what is secret is not seen."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd, dumps, load
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr

from langchain_rwkv_state import (
    RWKVLLM,
    ChatRWKV,
    DiskStateStore,
    MemoryStateStore,
    RWKVStateHistory,
)
from langchain_rwkv_state.errors import ModelLoadError, StoreError
from langchain_rwkv_state.prompt.template import ChatTemplate, G1Template, WorldTemplate
from langchain_rwkv_state.store import open_store, urls
from langchain_rwkv_state.store.resources import OPEN_STORES
from langchain_rwkv_state.tokenizer import WorldTokenizer

MODELS = [ChatRWKV, RWKVLLM]


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def kind(request) -> Any:
    return request.param


class TestNames:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("temprature", "temperature"),
            ("modl", "model"),
            ("max_token", "max_tokens"),
            ("tokens_path", "tokenizer"),
            ("max_tokens_per_generation", "max_tokens"),
            ("max_new_tokens", "max_tokens"),
            ("penalty_alpha_presence", "presence_penalty"),
            ("stop_sequences", "stop"),
            ("device", "strategy"),
        ],
    )
    def test_an_unknown_one_is_an_error_that_names_the_nearest(self, kind, store, name, meant):
        with pytest.raises(ValueError, match=rf"no setting '{name}': did you mean {meant}\?"):
            kind(model="demo", store=store, **{name: 1})
        if kind is ChatRWKV:
            with pytest.raises(ValueError, match=rf"'{name}': did you mean {meant}\?"):
                kind(model="demo", store=store).model_copy(update={name: 1})

    def test_one_that_is_like_no_other_is_an_error_that_lists_them_all(self, kind):
        with pytest.raises(ValueError, match=r"no setting 'qqqq': it knows .*strategy.*top_p"):
            kind(qqqq=1)

    @pytest.mark.parametrize("name", ["model_name", "model_path", "model_id"])
    def test_other_integrations_names_of_the_model_are_the_model(self, kind, store, name, tmp_path):
        assert kind(**{name: "demo"}, store=store).model == "demo"
        with pytest.raises(ModelLoadError, match=r"There is no file /models/x\.pth"):
            kind(**{name: "/models/x.pth"}, store=store)
        with pytest.raises(ValueError, match="named twice"):
            kind(model="demo", store=store, **{name: "/models/x.pth"})

    def test_langchains_parameters_of_a_network_are_left_out_with_one_warning(self, kind, store):
        with pytest.warns(UserWarning, match="max_retries and api_key mean nothing") as seen:
            kind(store=store, max_retries=2, api_key="sk-1")
        assert len(seen) == 1

    def test_a_call_names_the_nearest_too(self, chat):
        with pytest.raises(ValueError, match=r"'temprature': did you mean temperature\?"):
            chat.invoke("Hi", temprature=0)
        with pytest.raises(ValueError, match=r"did you mean max_tokens\?"):
            chat.invoke("Hi", max_new_tokens=3)

    @pytest.mark.filterwarnings("ignore:The function `load` is in beta")
    def test_serialised_forms_come_back(self, kind, tmp_path):
        with DiskStateStore(tmp_path) as store:
            model = kind(model="demo", store=store, stop=["x"], cache_salt="t", seed=4, slots=3)
            for again in (
                load(
                    dumpd(model),
                    allowed_objects=[kind],
                    valid_namespaces=["langchain_rwkv_state"],
                ),
                pickle.loads(pickle.dumps(model)),
            ):
                assert again.slots == 3
                assert again.cache_salt == model.cache_salt
                assert str(again.store_location) == str(tmp_path)


class TestValues:
    @pytest.mark.parametrize("value", [5, 5.0, True, ["a"], b"x", "", "  "])
    def test_a_store_that_is_none_is_refused_in_a_sentence(self, kind, value):
        with pytest.raises(ValueError, match=r"store(=| is)"):
            kind(model="demo", store=value)

    @pytest.mark.parametrize("value", ["g2", "", 5, "chatml"])
    def test_a_template_that_is_none_is_refused_in_a_sentence(self, kind, store, value):
        with pytest.raises(ValueError, match="'world', 'g1', 'demo'"):
            kind(model="demo", store=store, template=value)

    def test_a_template_may_be_named_or_made(self, kind, store):
        assert kind(store=store, template="world").template is WorldTemplate
        assert kind(store=store, template=" G1").template is G1Template

        class Mine(WorldTemplate):
            name = "mine"

        assert kind(store=store, template=Mine).template is Mine

        def made(tokenizer: Any) -> ChatTemplate:
            return Mine(tokenizer)

        assert kind(store=store, template=made).template is made
        with pytest.raises(ValueError, match="pass Mine"):
            kind(store=store, template=Mine(WorldTokenizer()))

    @pytest.mark.parametrize("value", ["", True, 1.5, ["a"], b"x"])
    def test_a_salt_that_is_none_is_refused(self, kind, store, value):
        with pytest.raises(ValueError, match="cache_salt"):
            kind(model="demo", store=store, cache_salt=value)

    def test_a_number_is_a_salt(self, make_chat):
        assert make_chat(7, cache_salt=7).cache_salt == make_chat(7, cache_salt="7").cache_salt
        assert make_chat(7).invoke("Hi", cache_salt=7).content
        with pytest.raises(ValueError, match="cache_salt"):
            make_chat(7).invoke("Hi", cache_salt="")

    @pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-that-name/x.pth"])
    def test_a_model_that_can_be_no_path_is_refused_in_a_sentence(self, kind, store, name):
        with pytest.raises(ModelLoadError, match="no model's path"):
            kind(model=name, store=store)

    def test_what_is_no_tokenizer_and_no_template_is_named(self, kind, tiny_model, store):
        for odd in ({"tokenizer": 5}, {"template": lambda _: 5}):
            with pytest.raises(ModelLoadError, match=r"got 5|returned 5"):
                kind(model=str(tiny_model(7)), store=store, **odd).loaded()

    def test_stop_is_texts(self, kind, store, chat):
        for odd in (5, {"a": 1}, [""], [5]):
            with pytest.raises(ValueError, match="stop"):
                kind(store=store, stop=odd)
        with pytest.raises(ValueError, match="stop is a text or a list of texts, got 5"):
            chat.invoke("Hi", stop=5)


class Seen(BaseCallbackHandler):
    """Writes down all that a tracer is told."""

    def __init__(self) -> None:
        self.text = ""

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.text += f"{serialized!r} {messages!r} {kwargs!r}"

    def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
        self.text += f"{serialized!r} {prompts!r} {kwargs!r}"

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.text += f"{response!r} {kwargs!r}"


class TestASaltIsSeenNowhere:
    SALT = "tenant-secret-7"

    @pytest.fixture(params=["make_chat", "make_llm"])
    def make(self, request) -> Any:
        return request.getfixturevalue(request.param)

    @pytest.mark.parametrize("salt", [SALT, SecretStr(SALT)])
    def test_of_a_model(self, make, salt, tmp_path):
        with DiskStateStore(tmp_path) as store:
            model = make(7, cache_salt=salt, store=store, prefix_cache=None)
            seen = Seen()
            model.invoke("Hi", {"callbacks": [seen]})
            for text in (
                repr(model),
                str(model),
                dumps(model),
                repr(pickle.dumps(model)),
                repr(model.model_dump()),
                seen.text,
            ):
                assert text
                assert self.SALT not in text

    def test_of_a_call(self, make):
        model, seen = make(7), Seen()
        model.invoke("Hi", {"callbacks": [seen]}, cache_salt=self.SALT)
        for _ in model.stream("Hi", {"callbacks": [seen]}, cache_salt=self.SALT):
            pass
        bound = model.bind(cache_salt=self.SALT)
        bound.invoke("Hi", {"callbacks": [seen]})
        assert seen.text
        for text in (seen.text, repr(bound)):
            assert self.SALT not in text

    def test_of_an_error(self, kind, store):
        for wrong in ({"temperatur": 1}, {"model_id": "a", "model": "b"}, {"store": 5}):
            with pytest.raises(ValueError, match=r".") as error:
                kind(**{"model": "demo", "store": store, "cache_salt": self.SALT, **wrong})
            assert self.SALT not in str(error.value)
        for odd in ([self.SALT], self.SALT.encode()):
            with pytest.raises(ValueError, match="cache_salt") as error:
                kind(model="demo", store=store, cache_salt=odd)
            assert self.SALT not in str(error.value)

    def test_and_still_keeps_tenants_apart(self, make_chat):
        chat = make_chat(7)
        said = "A long enough prompt that is read by two tenants, each on its own. " * 4

        def reused(model: Any, **options: Any) -> int:
            answer = model.invoke(said, **options)
            return int(answer.usage_metadata["input_token_details"]["cache_read"])

        assert reused(chat, cache_salt="ada") == 0
        assert reused(chat, cache_salt="bob") == 0
        assert reused(chat, cache_salt="ada") > 0
        assert reused(make_chat(7, cache_salt="ada")) > 0
        assert reused(pickle.loads(pickle.dumps(make_chat(7, cache_salt="eve", store=None)))) == 0
        copied = make_chat(7).model_copy(update={"cache_salt": "ada"})
        assert reused(copied) > 0
        bound = chat.bind(cache_salt="ada")
        assert reused(bound) > 0
        open_to_all = chat.configurable_fields(cache_salt=ConfigurableField(id="salt"))
        assert reused(open_to_all.with_config(configurable={"salt": "ada"})) > 0


class TestAStoreThatIsNamed:
    def test_is_a_value_until_it_is_asked_something(self, kind, tmp_path):
        path = tmp_path / "states"
        model = kind(model="demo", store=path)
        for each in (
            model,
            model.model_copy(deep=True),
            kind(model="demo").model_copy(update={"store": str(path)}),
            pickle.loads(pickle.dumps(model)),
            kind(model="demo", store_location=str(path)),  # as it was serialised once
        ):
            assert isinstance(each.store, DiskStateStore)
            assert repr(each.store) == f"DiskStateStore({str(path)!r})"
            assert each.store_location == str(path)
            assert f"store={str(path)!r}" in repr(each)
        assert not path.exists()
        assert model.store.sessions() == []
        assert path.exists()
        assert pickle.loads(pickle.dumps(model.store)).path == model.store.path == path
        with pytest.raises(AttributeError, match="no attribute 'sesions'"):
            _ = model.store.sesions
        model.store.close()
        with pytest.raises(StoreError, match="closed"):
            model.store.sessions()

    def test_is_opened_once_by_many_threads(self, tmp_path):
        store = ChatRWKV(model="demo", store=tmp_path / "states").store
        before, ready = len(OPEN_STORES), threading.Barrier(16)

        def asked(_: int) -> list[str]:
            ready.wait()
            return store.sessions()

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(asked, range(16))) == [[]] * 16
        assert len(OPEN_STORES) == before + 1
        store.close()
        assert len(OPEN_STORES) == before


class TestAStoreWithAUrl:
    URL = "redis://user:s3cret@127.0.0.1:1/0?tenant=a"
    SHOWN = "redis://user:***@127.0.0.1:1/0?tenant=a"

    def test_is_a_value_that_shows_no_password(self, kind):
        model = kind(model="demo", store=self.URL)
        assert model.store_location == self.SHOWN
        assert f"store='{self.SHOWN}'" in repr(model)
        for seen in (
            repr(model) + str(model) + repr(model.store),
            dumps(model),
            str(model.model_dump()) + model.model_dump_json(),
            str(model._identifying_params) + str(model._get_ls_params()),
            repr(model.model_copy(update={"store": self.URL})),
            repr(model | (lambda found: found)),
        ):
            assert "s3cret" not in seen
        assert self.SHOWN in dumps(model)

    @pytest.mark.filterwarnings("ignore:The function `load` is in beta")
    def test_travels(self, kind):
        model = kind(model="demo", store=self.URL)
        assert "s3cret" in pickle.loads(pickle.dumps(model)).store.url.text
        loaded = load(
            dumpd(model), allowed_objects=[kind], valid_namespaces=["langchain_rwkv_state"]
        )
        assert loaded.store_location == self.SHOWN
        assert loaded.store.url.settings == {"tenant": "a"}

    def test_that_cannot_be_right_is_refused_at_once(self, kind):
        for wrong, says in {
            "reddis://user:s3cret@h": "Did you mean redis:",
            "redis://user:s3cret@h?tenat=a": "did you mean tenant",
        }.items():
            with pytest.raises(ValueError, match=says) as error:
                kind(model="demo", store=wrong)
            assert "s3cret" not in str(error.value)

    def test_in_memory_is_one_for_whoever_names_it(self, make_chat, kind):
        make_chat(7, store="memory:test_settings").with_session("bob").invoke("Hello.")
        other = kind(model="demo", store="memory:test_settings")
        assert other.store.sessions() == ["bob"]
        assert pickle.loads(pickle.dumps(other)).store.sessions() == ["bob"]
        history = RWKVStateHistory("bob", "memory:test_settings")
        assert len(history.messages) == 1

    async def test_is_opened_beside_the_event_loop(self, make_chat, monkeypatch):
        held, opening = MemoryStateStore(), set()

        def opened(*_: Any, **__: Any) -> MemoryStateStore:
            opening.add(threading.get_ident())
            return held

        monkeypatch.setattr(urls, "_redis_class", lambda: opened)
        url = "redis://test_settings"
        await make_chat(7, store=url).with_session("bob").ainvoke("Hello.")
        await make_chat(7, store=url).ainvoke("Hello.")
        await RWKVStateHistory("bob", url).aget_messages()
        assert held.sessions() == ["bob"]
        assert opening
        assert threading.get_ident() not in opening

    def test_may_be_the_users_own(self, make_chat, monkeypatch):
        monkeypatch.setenv("RWKV_STATE_DIR", "memory:test_settings_own")
        chat = make_chat(7, store=None)
        assert chat.store_location is None
        chat.with_session("bob").invoke("Hello.")
        assert open_store().sessions() == ["bob"]


class TestWithoutAHome:
    @pytest.fixture
    def homeless(self, monkeypatch) -> None:
        monkeypatch.setenv("RWKV_STATE_DIR", "/proc/self/nowhere")

    def test_an_answer_needs_none(self, make_chat, homeless):
        chat = make_chat(7, store=None)
        with pytest.warns(UserWarning, match="own store cannot be opened") as seen:
            first = chat.invoke("Hello.")
        assert len(seen) == 1
        assert first.content == make_chat(7, store=MemoryStateStore()).invoke("Hello.").content
        from langchain_rwkv_state.messages import marker

        ref = first.response_metadata["rwkv_state"]
        again = chat.invoke([marker(ref), ("human", "Again.")])
        assert again.usage_metadata["input_token_details"]["cache_read"] > 0

    def test_memory_does(self, make_chat, homeless):
        chat = make_chat(7, store=None)
        for verb in (
            lambda: chat.with_session("bob"),
            lambda: chat.prefill("Hello."),
            lambda: chat.store.sessions(),
        ):
            with pytest.raises(StoreError, match="nowhere"):
                verb()

    def test_a_store_that_was_named_must_open(self, make_chat):
        chat = make_chat(7, store="/proc/self/nowhere")
        with pytest.raises(StoreError, match="nowhere"):
            chat.invoke("Hello.")
