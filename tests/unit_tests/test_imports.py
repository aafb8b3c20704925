import subprocess
import sys

import pytest

import langchain_rwkv_state

EXPORTED = [
    "ChatRWKV",
    "ChatTemplate",
    "DiskStateStore",
    "MemoryStateStore",
    "PrefixStateCache",
    "RWKVLLM",
    "RWKVSession",
    "RWKVState",
    "RWKVStateHistory",
    "RWKVStateMiddleware",
    "RedisStateStore",
    "StateLayout",
    "StateStore",
    "ToolFormat",
    "__version__",
    "marker",
    "rwkv_node",
    "without_markers",
]


def test_the_public_names_are_these_and_no_others():
    assert sorted(langchain_rwkv_state.__all__) == sorted(EXPORTED)
    assert set(EXPORTED) <= set(dir(langchain_rwkv_state))


@pytest.mark.parametrize("name", EXPORTED)
def test_each_public_name_can_be_imported(name):
    assert getattr(langchain_rwkv_state, name) is not None


def test_no_other_name_can():
    with pytest.raises(AttributeError, match="RWKVNothing"):
        _ = langchain_rwkv_state.RWKVNothing


def test_importing_the_package_neither_loads_torch_nor_prints():
    code = (
        "import sys, langchain_rwkv_state;"
        "sys.exit('torch' in sys.modules or 'langchain_core' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_without_langchain_all_else_can_be_imported():
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *where: (\n"
        "    None if name.partition('.')[0] == 'langchain' else find(name, *where))\n"
        "from langchain_rwkv_state import *\n"
        "assert ChatRWKV and rwkv_node and 'RWKVStateMiddleware' not in globals()\n"
        "assert RedisStateStore and 'redis' not in sys.modules\n"
        "try:\n"
        "    from langchain_rwkv_state import RWKVStateMiddleware\n"
        "except ImportError as error:\n"
        "    assert '[agents]' in str(error)\n"
        "else:\n"
        "    sys.exit('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_an_answer_waits_for_no_import_that_it_does_not_need():
    code = (
        "import gc, sys\n"
        "from langchain_rwkv_state import ChatRWKV, MemoryStateStore\n"
        "assert gc.isenabled()\n"
        "chat = ChatRWKV(model='demo', store=MemoryStateStore(), max_tokens=2)\n"
        "assert chat.invoke('hi').content\n"
        "needless = {'llguidance', 'huggingface_hub', 'matplotlib', 'yaml', 'rich', 'typer',"
        " 'rwkv', 'gguf', 'triton', 'torch._dynamo'}\n"
        "assert not needless & set(sys.modules), needless & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_collector_stays_off_where_a_program_switched_it_off():
    code = (
        "import gc, langchain_rwkv_state\n"
        "gc.disable()\n"
        "langchain_rwkv_state.RWKVState\n"
        "assert not gc.isenabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_has_one_root():
    from langchain_rwkv_state import errors

    named = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(named) > 8
    assert all(issubclass(kind, errors.RWKVStateError) for kind in named)
