"""Every example runs as it stands, and so does every piece of Python in the documentation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.py"))
PATIENCE_SECONDS = 900  # a busy machine takes its time to import PyTorch

EXPECTED = {
    "quickstart.py": ["This session is new", "Nice to meet you, Marlow", "Your name is Marlow."],
    "chain.py": ["Arr! Your name is Marlow."],
    "warm_state.py": ["Mirabel", "known from the state"],
    "llm.py": ["' Marlow.'", "' Ottilie.'"],
    "many_users.py": ["u1  Your name is Marlow. You live in Lisbon.", "Ottilie", "Ruben", "Kyoto"],
    "demo.py": [
        "It recalled 3 of 3 facts.",
        "tokens, in 6 turns",
        "135,168 bytes",
        "time to live",
        "No transcript is stored",
    ],
}
ELSEWHERE = {"train_demo_model.py"}
README = [
    "Your name is Marlow.",
    "Arr! Your name is Marlow.",
    "Mirabel",
    "2 hits",
    "You live in Lisbon.",
    " Marlow.",
]


def _run(tmp_path, *command):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", *command],
        env={**os.environ, "RWKV_STATE_DIR": str(tmp_path / "store"), "PYTHONUTF8": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def _blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


TOOLBOX = {
    "blend.md": ["Your name is Beatrice.", "You live in Lisbon."],
    "clamp_decay.md": ["+clamp(-8,-0.1)/fp32", "before,"],
    "codecs.md": ["exact 136", "int8 36", "Your name is Beatrice."],
    "decay.md": ["1.0 Your name is Beatrice.", "0.1 I don't know"],
    "distance.md": ["nats apart"],
    "half_life.md": [
        "7 measured on 53 tokens of the built-in conversation",
        "tokens in the middle",
    ],
    "inspect.md": ["Finite: no NaN", "Sound: all sizes", "(4, 2) layers and heads", "differ most"],
    "memory.md": ["state=34603008, cache=4294967296, grouped=1073741824"],
    "recall.md": ["state [(0, 2, 2)"],
    "renormalise.md": ["True", "An RWKV-7 has no scale beside its matrices"],
    "repeat.md": ["4 True True", "Mirabel.", "know your name."],
    "start_states.md": ["Mirabel", "Your name is Orson."],
    "watch.md": ["absent", "1 turns; moved by None", "3 turns; moved by 0."],
}


def test_every_example_has_its_expected_output_here():
    assert set(EXAMPLES) == set(EXPECTED) | ELSEWHERE


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example_prints_what_it_promises(name, tmp_path):
    printed = _run(tmp_path, str(ROOT / "examples" / name))
    for text in EXPECTED[name]:
        assert text in printed


def test_the_quickstart_remembers_when_it_is_run_again(tmp_path):
    script = str(ROOT / "examples" / "quickstart.py")
    _run(tmp_path, script)
    again = _run(tmp_path, script)
    assert "This session has a past" in again
    assert "Your name is Marlow." in again
    assert "You live in Lisbon." in again


def test_the_demo_takes_words_of_ones_own_and_keeps_its_store(tmp_path):
    words = ["--name", "Ruben", "--city", "Kyoto", "--number", "905"]
    store = tmp_path / "kept"
    printed = _run(tmp_path, str(ROOT / "examples/demo.py"), "--store", str(store), *words)
    for text in ("Your name is Ruben.", "You live in Kyoto.", "Your lucky number is 905."):
        assert text in printed
    assert "rwkv-state show demo-session" in printed
    assert (store / "cache.db").is_file()


@pytest.mark.parametrize("number", range(len(README)))
def test_a_block_of_the_readme_runs_by_itself(number, tmp_path):
    blocks = _blocks("README.md")
    assert len(blocks) == len(README)
    assert len(blocks[number].splitlines()) <= 24
    assert README[number] in _run(tmp_path, "-c", blocks[number])


def test_the_blocks_of_the_page_on_langchain_run_one_after_the_other(tmp_path):
    blocks = _blocks("docs/langchain.md")
    assert len(blocks) == 7
    printed = _run(tmp_path, "-c", "\n".join(blocks))
    for text in (
        "Your name is Marlow.",
        "You live in Lisbon.",
        "Mirabel",
        "demo 0.0",
        "1 message is left",
    ):
        assert text in printed


@pytest.mark.parametrize("page", sorted(TOOLBOX))
def test_the_blocks_of_a_page_of_the_toolbox_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(_blocks(f"docs/toolbox/{page}"))
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    for text in TOOLBOX[page]:
        assert text in printed


def test_every_page_of_the_toolbox_with_code_is_run_here():
    pages = {
        path.name for path in ROOT.glob("docs/toolbox/*.md") if "```python" in path.read_text()
    }
    assert pages == set(TOOLBOX)


def test_the_blocks_of_the_page_on_the_prefix_cache_run(tmp_path):
    blocks = _blocks("docs/prefix_cache.md")
    assert len(blocks) == 2
    printed = _run(tmp_path, "-c", "\n".join(blocks))
    assert "hits=1" in printed
    assert "('lamps',)" in printed
