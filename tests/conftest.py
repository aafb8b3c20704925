"""Fixtures of all tests: a store of their own, the demo model, and tiny random models.

No test touches the user's default store or prefix cache: `RWKV_STATE_DIR` points into a temporary
directory before anything is imported, and `RWKV_PREFIX_CACHE_DIR` to none. Models come from
`make_chat` and `make_llm`, which unload them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_rwkv_state import (
        RWKVLLM,
        ChatRWKV,
        DiskStateStore,
        MemoryStateStore,
        PrefixStateCache,
    )

os.environ["OMP_NUM_THREADS"] = "1"
_default_store = tempfile.TemporaryDirectory(prefix="rwkv-state-tests-")
os.environ["RWKV_STATE_DIR"] = _default_store.name
os.environ["RWKV_PREFIX_CACHE_DIR"] = ""  # in memory: what the user warmed is not the tests'

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

from tests.helpers.checkpoints import write_checkpoint, write_tokenizer  # noqa: E402
from tests.helpers.devices import EACH_STRATEGY, ON_CPU  # noqa: E402

torch.set_num_threads(1)

_PROFILE: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
# Shrinking a failure that runs a model takes minutes: --hypothesis-profile=thorough does it.
settings.register_profile(
    "quick", max_examples=20, phases=[Phase.explicit, Phase.generate], **_PROFILE
)
settings.register_profile("thorough", **{**_PROFILE, "max_examples": 500, "derandomize": False})
settings.load_profile("quick")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.name == "nt" and item.get_closest_marker("posix"):
        pytest.skip("needs symbolic links, pipes or fork")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked ``thorough``, unless ``-m`` speaks of it."""
    if "thorough" not in config.option.markexpr:
        thorough = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if item not in thorough]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test marked ``each_device`` that uses a model on the CPU and on a card."""
    if metafunc.definition.get_closest_marker("each_device"):
        if "model_strategy" not in metafunc.fixturenames:
            raise ValueError(f"{metafunc.function.__name__} is each_device and makes no chat model")
        metafunc.parametrize("model_strategy", EACH_STRATEGY, indirect=True)


TinyModel = Callable[..., Path]
MakeChat = Callable[..., "ChatRWKV"]
MakeLLM = Callable[..., "RWKVLLM"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Gives the path of a random checkpoint, its tokenizer beside it: ``tiny_model(version)``."""
    made: dict[tuple[float, int], Path] = {}

    def path(version: float = 7, *, seed: int = 0) -> Path:
        if (version, seed) not in made:
            folder = tmp_path_factory.mktemp(f"rwkv-{version}")
            write_tokenizer(folder / "tokenizer.json")
            made[version, seed] = write_checkpoint(
                folder / "model.pth", version, n_embd=64, head_size=32, seed=seed
            )
        return made[version, seed]

    return path


@pytest.fixture
def store() -> Iterator[MemoryStateStore]:
    from langchain_rwkv_state import MemoryStateStore

    with_memory = MemoryStateStore()
    yield with_memory
    with_memory.close()


@pytest.fixture
def disk_store(tmp_path: Path) -> Iterator[DiskStateStore]:
    from langchain_rwkv_state import DiskStateStore

    on_disk = DiskStateStore(tmp_path / "states")
    yield on_disk
    on_disk.close()


@pytest.fixture(scope="session", autouse=True)
def _held_models(tiny_model: TinyModel) -> Iterator[dict[tuple[str, str], ChatRWKV]]:
    """Holds each model's weights from its first use to the end, so that they load once."""
    held: dict[tuple[str, str], ChatRWKV] = {}
    yield held
    for chat in held.values():
        chat.unload()


@pytest.fixture
def prefix_cache() -> Iterator[PrefixStateCache]:
    """A cache of the test's own: what one test read is new to the next."""
    from langchain_rwkv_state import PrefixStateCache

    cache = PrefixStateCache(ram_bytes=64 << 20)
    yield cache
    cache.close()


@pytest.fixture
def model_strategy(request: pytest.FixtureRequest) -> str:
    """Where RWKV-7 runs: on the CPU, and for tests marked ``each_device`` on a card too."""
    return str(getattr(request, "param", ON_CPU))


def _strategy(model: str, model_strategy: str) -> str:
    """Returns where a model runs: what is on a card is RWKV-7's alone."""
    return model_strategy if model == "demo" or "rwkv-7" in model else ON_CPU


@pytest.fixture
def make_chat(
    store: MemoryStateStore,
    prefix_cache: PrefixStateCache,
    tiny_model: TinyModel,
    model_strategy: str,
    _held_models: dict[tuple[str, str], ChatRWKV],
) -> Iterator[MakeChat]:
    """Makes greedy chat models over `store`: ``make_chat("demo")``, ``make_chat(7, seed=1)``.

    A number is the version of a tiny random model.
    """
    from langchain_rwkv_state import ChatRWKV, MemoryStateStore

    made: list[ChatRWKV] = []

    def make(model: float | str | Path = 7, **settings: Any) -> ChatRWKV:
        name = str(tiny_model(model) if isinstance(model, int | float) else model)
        strategy = _strategy(name, model_strategy)
        if (name, strategy) not in _held_models:
            held = ChatRWKV(
                model=name, strategy=strategy, store=MemoryStateStore(), prefix_cache=False
            )
            _held_models[name, strategy] = held
            held.loaded()
        chat = ChatRWKV(
            **{
                "model": name,
                "strategy": strategy,
                "store": store,
                "prefix_cache": prefix_cache,
                "temperature": 0,
                "max_tokens": 24,
                **settings,
            }
        )
        made.append(chat)
        return chat

    yield make
    for chat in made:
        chat.unload()


@pytest.fixture
def make_llm(
    store: MemoryStateStore,
    prefix_cache: PrefixStateCache,
    tiny_model: TinyModel,
    model_strategy: str,
    _held_models: dict[tuple[str, str], ChatRWKV],
) -> Iterator[MakeLLM]:
    """Makes greedy completion models over `store`, as `make_chat` does."""
    from langchain_rwkv_state import RWKVLLM

    made: list[RWKVLLM] = []

    def make(model: float | str | Path = 7, **settings: Any) -> RWKVLLM:
        name = str(tiny_model(model) if isinstance(model, int | float) else model)
        llm = RWKVLLM(
            **{
                "model": name,
                "strategy": _strategy(name, model_strategy),
                "store": store,
                "prefix_cache": prefix_cache,
                "temperature": 0,
                "max_tokens": 24,
                **settings,
            }
        )
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.unload()


@pytest.fixture
def chat(make_chat: MakeChat) -> ChatRWKV:
    """A tiny random RWKV-7: for what holds whatever is said."""
    return make_chat(7)


@pytest.fixture
def demo(make_chat: MakeChat) -> ChatRWKV:
    """The built-in model: for what depends on what is said."""
    return make_chat("demo", max_tokens=64)
