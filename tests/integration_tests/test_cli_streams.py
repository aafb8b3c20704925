"""The command line under other encodings, and with byte order marks, as processes of their own."""

import codecs
import json
import os
import shlex
import subprocess
import sys

import pytest

from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.command import PATIENCE_SECONDS, RWKV_STATE

# A Windows pipe, a log under C, an old terminal; and a C locale that Python does not make UTF-8.
ENCODINGS = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp437:strict"},
    {"PYTHONIOENCODING": "shift_jis"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
_ALL_OF_THEM = """
import json, sys
from langchain_rwkv_state.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        print(f"\\n={end.code}")
"""
NAME = "\u65e5\u672c \u201equoted\u201c \U0001f600"


def _at(store):
    return ["--store", str(store)]


def _run(store, *words, data=b"", **env):
    return subprocess.run(
        [*RWKV_STATE, *words, *_at(store)],
        input=data,
        capture_output=True,
        env={**os.environ, **env},
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def talked(tmp_path_factory):
    """A store with a session whose name no old encoding holds."""
    store = tmp_path_factory.mktemp("streams") / "store"
    said = "My name is \u65e5\u672c.\nWhat is my name?\n"
    done = _run(store, "chat", "-s", NAME, "--temperature", "0", data=said.encode())
    assert done.returncode == 0, done.stderr
    return store


@pytest.mark.parametrize("env", ENCODINGS, ids=lambda env: ",".join(env.values()))
def test_no_command_dies_half_way(talked, tmp_path, env):
    with DiskStateStore(talked) as opened:
        opened.fork(NAME, "bob")
    store, cache = ["--store", str(talked)], ["--dir", str(tmp_path / "cache")]
    commands = [
        ["sessions", *store],
        ["doctor", *store],
        ["show", "bob", *store],
        ["inspect", "bob", *store],
        ["watch", "bob", "--once", *store],
        ["warm", "--file", str(_prompts(tmp_path)), *cache, *store],
        ["cache", "--tree", *cache],
        ["half-life"],
        ["rm", "bob", *store],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _ALL_OF_THEM, json.dumps(commands)],
        capture_output=True,
        env={**os.environ, **env},
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n=0\n") == len(commands)


def _prompts(folder):
    file = folder / "prompts.yaml"
    file.write_text(f"- {{name: '{NAME}', system: 'Talk about \u65e5\u672c.'}}\n", "utf-8")
    return file


def test_what_an_encoding_lacks_becomes_simpler_and_nothing_is_left_out(talked):
    shown = _run(talked, "sessions", PYTHONIOENCODING="cp1252").stdout.decode("cp1252")
    assert "\\u65e5\\u672c \u201equoted\u201c \\U0001f600" in shown
    shown = _run(talked, "doctor", PYTHONIOENCODING="ascii").stdout.decode("ascii")
    assert "+  python" in shown
    assert "All is well." in shown
    shown = _run(talked, "rm", "\u65e5", PYTHONIOENCODING="ascii")
    assert shown.returncode == 1
    assert shown.stderr.decode("ascii").startswith("error: There is no session '\\u65e5'")


def test_bytes_that_are_no_text_do_not_end_a_conversation(tmp_path):
    for encoding in ("utf-8:strict", "cp1252", "ascii"):
        done = _run(
            tmp_path / encoding[:5],
            *("chat", "--temperature", "0"),
            data=b"My name is Bob.\n\x81\xff\xfe?\nWhat is my name?\n",
            PYTHONIOENCODING=encoding,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, mark, encoding):
    said = "My name is Bob.\r\nWhat is my name?\r\n"
    talk = ("chat", "--temperature", "0", "-s", "bob")
    plain = _run(tmp_path / "plain", *talk, data=said.encode())
    assert plain.stdout.splitlines()[1:] == [b"Your name is Bob."]
    marked = _run(tmp_path / "marked", *talk, data=mark + said.encode(encoding))
    assert (marked.returncode, marked.stdout) == (0, plain.stdout)
    other = _run(
        tmp_path / "old", *talk, data=mark + said.encode(encoding), PYTHONIOENCODING="cp1252"
    )
    assert other.stdout == plain.stdout
    heads = []
    for name in ("plain", "marked", "old"):
        with DiskStateStore(tmp_path / name) as store:
            info = store.session("bob")
            heads.append(info and info.n_tokens)
    assert len(set(heads)) == 1


def test_lines_are_answered_as_they_come_and_not_at_the_end(tmp_path):
    """A program that talks through a pipe waits for each answer before it says more."""
    with subprocess.Popen(
        [*RWKV_STATE, "chat", "--temperature", "0", *_at(tmp_path / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for said, answer in (("My name is Bob.", b"Bob"), ("What is my name?", b"Bob")):
            process.stdin.write(said.encode() + b"\n")
            process.stdin.flush()
            assert answer in process.stdout.readline()
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_process_without_a_standard_stream_does_its_work(talked, tmp_path, closed):
    """And no file that it opens stands in the stream's place."""
    copy = tmp_path / "copy"
    words = [*RWKV_STATE, "backup", str(copy), *_at(talked)]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(words)} {closed}"],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    with DiskStateStore(copy) as store:
        assert store.sessions() == [NAME]
        assert store.check().sound


def test_what_is_written_to_a_stream_that_is_not_there_is_in_no_file(tmp_path):
    script = """
import os, sys
from langchain_rwkv_state.cli.streams import prepare_streams
prepare_streams()
with open(sys.argv[1], "wb") as file:
    assert file.fileno() > 2, file.fileno()
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
os.write(2, b"Stopped.")
"""
    file = tmp_path / "file"
    words = shlex.join([sys.executable, "-c", script, str(file)])
    for closed in ("2>&-", "<&- >&- 2>&-"):
        assert subprocess.run(["sh", "-c", f"{words} {closed}"], check=False).returncode == 0
        assert file.read_bytes() == b""


@pytest.mark.parametrize("words", [["chat"], ["ask", "What is my name?"]])
def test_a_conversation_without_a_standard_input_is_one_with_nothing_in_it(talked, words):
    command = shlex.join([*RWKV_STATE, *words, "-s", NAME, *_at(talked)])
    done = subprocess.run(
        ["sh", "-c", f"{command} <&-"], capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == len(words) - 1
