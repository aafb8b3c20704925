"""The commands that look after the prefix cache on disk."""

import os
import re
import subprocess
import sys

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from typer.testing import CliRunner

from langchain_rwkv_state import DiskStateStore, PrefixStateCache
from langchain_rwkv_state.cli import app
from langchain_rwkv_state.cli.cache import read_prompts
from tests.helpers.command import rwkv_state
from tests.helpers.states import random_state

PROMPTS = """
- name: pirate
  system: Talk like a pirate. Your name is Mirabel, and you listen with great care to everybody.
- name: examples
  salt: shop
  messages:
    - [system, "You add numbers."]
    - [human, "1+1?"]
    - {role: ai, content: "2"}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_PREFIX_CACHE_DIR", str(tmp_path / "prefixes"))
    return lambda *words: CliRunner().invoke(app, words, env={"COLUMNS": "200"})


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(PROMPTS)
    return path


def test_prompts_are_read_from_yaml(prompts):
    (name, salt, messages), (other, other_salt, others) = read_prompts(prompts)
    assert (name, salt, other, other_salt) == ("pirate", None, "examples", "shop")
    assert messages == [SystemMessage(messages[0].content)]
    assert [type(m) for m in others] == [SystemMessage, HumanMessage, AIMessage]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x", "list"),
        ("- system: x", "no name"),
        ("- name: x", "neither"),
        ("- {name: x, system: y, ttl: 1}", "'ttl'"),
        ("- {", "not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_a_sentence(run, tmp_path, text, said):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    result = run("warm", "--file", str(path))
    assert result.exit_code == 1
    assert said in result.output


def test_what_was_warmed_is_shown_explained_used_and_cleared(run, prompts, tmp_path, make_chat):
    assert "no prefix cache" in run("cache").output
    result = run("warm", "--file", str(prompts))
    assert result.exit_code == 0, result.output
    assert "pirate:" in result.stdout
    assert "of them read" in result.stdout
    assert ", 0 of them read" in run("warm", "--file", str(prompts)).stdout

    lines = run("cache").stdout.splitlines()
    assert lines[0].split()[:4] == ["MODEL", "TOKENS", "BYTES", "HITS"]
    assert sum("pirate" in line and "never" in line for line in lines) == 1
    assert sum("examples" in line and line.rstrip().endswith("yes") for line in lines) == 1

    drawn = run("cache", "--tree").stdout
    assert "System: Talk like a pirate" in drawn
    assert "pinned: pirate" in drawn

    system = read_prompts(prompts)[0][2][0].content
    explained = run("cache", "explain", "Who are you?", "--system", system).stdout
    assert "tokens are kept; the prompt differs" in explained
    assert "0 of" in run("cache", "explain", "Who are you?").stdout

    cache = PrefixStateCache(ram_bytes=8 << 20, disk=tmp_path / "prefixes")
    chat = make_chat("demo", prefix_cache=cache)
    answer = chat.invoke([SystemMessage(system), HumanMessage("What is your name?")])
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 10
    cache.close()

    assert "Removed 2 states" in run("cache", "clear").stdout
    assert "empty" in run("cache").stdout


def test_what_was_warmed_is_found_by_a_process_that_says_nothing_of_it(prompts, tmp_path):
    home = {**os.environ, "HOME": str(tmp_path)}
    for name in ("RWKV_PREFIX_CACHE_DIR", "XDG_CACHE_HOME"):
        home.pop(name, None)
    done = rwkv_state(tmp_path / "store", "warm", "--file", str(prompts), env=home)
    assert done.returncode == 0, done.stderr
    assert "Every process of this user begins from them" in done.stdout
    system = read_prompts(prompts)[0][2][0].content
    code = (
        "from langchain_rwkv_state import ChatRWKV, MemoryStateStore\n"
        "chat = ChatRWKV(model='demo', store=MemoryStateStore())\n"
        f"said = [('system', {system!r}), ('human', 'Hi.')]\n"
        "for salt in (None, 'shop'):\n"
        "    usage = chat.invoke(said, cache_salt=salt).usage_metadata\n"
        "    print(usage['input_token_details']['cache_read'])"
    )
    other = [sys.executable, "-c", code]
    read = subprocess.run(other, env=home, capture_output=True, text=True, check=True).stdout
    tokens = re.search(r"pirate: (\d+) tokens", done.stdout)
    assert tokens
    assert read.split() == [tokens[1], "0"]


def test_warm_says_how_what_it_wrote_elsewhere_is_used(run, prompts, tmp_path):
    for words, where in (((), "prefixes"), (("--dir", str(tmp_path / "own")), "own")):
        said = run("warm", "--file", str(prompts), *words).stdout
        assert f"set RWKV_PREFIX_CACHE_DIR={tmp_path / where}, or pass prefix_cache=" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, messages: [[human, 1+1?]]}", "is not YAML; a text that holds ?"),
        ("- {name: a, messages: [[human, 2]]}", "'a' .* holds a message that is none"),
        ("- {name: a, messages: [[nobody, x]]}", "Unexpected message type: 'nobody'"),
        ("- {name: a, messages: [7]}", "Unsupported message type"),
        ("- {name: a, messages: Hi.}", "'a' .* has messages that are no list: write"),
        ("- {name: a, messages: {human: Hi.}}", "'a' .* has messages that are no list: write"),
        ("- {name: a, system: [Be kind.]}", "'a' .* has a system that is no text"),
        ("- {name: a, system: x}\n- {name: a, system: y}", "two prompts of the name 'a'"),
        ("[]", "must hold a list of prompts"),
    ],
)
def test_a_prompt_that_is_none_is_named_in_a_sentence(tmp_path, text, message):
    (tmp_path / "prompts.yaml").write_text(text)
    words = ["warm", "--file", str(tmp_path / "prompts.yaml"), "--dir", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "store")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert re.search(message, result.stderr)
    assert not (tmp_path / "store").exists()


def test_prompts_with_a_byte_order_mark_are_read(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_bytes(b"\xef\xbb\xbf- {name: a, system: Be kind.}\r\n")
    assert [name for name, *_ in read_prompts(file)] == ["a"]


@pytest.mark.parametrize("words", [("cache", "clear"), ("cache",), ("cache", "explain", "Hi")])
def test_a_session_store_is_no_cache_and_is_left_alone(run, tmp_path, words):
    with DiskStateStore(tmp_path / "store") as store:
        ref = store.put(random_state([1]))
    result = run(*words, "--dir", str(tmp_path / "store"))
    assert result.exit_code == 1
    assert "is a session store" in result.stderr
    with DiskStateStore(tmp_path / "store") as store:
        assert store.get(ref) == random_state([1])
