"""Every example runs as it stands; the code of the documentation is run by `test_docs_run`."""

import os
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
    "tools.py": ["get_weather({'city': 'Lisbon'})", "Sunny, 18 degrees", "391", "Good morning"],
    "agent.py": [
        "calls  get_weather({'city': 'Lisbon'})",
        "tool   391",
        "process 2",
        "ai     Your name is Marlow.",
        "bytes of checkpoint",
    ],
    "fork.py": ["You live in Lisbon.", "You live in Kyoto.", "Nice to meet you, Ottilie."],
    "structured.py": ["Person(name='Marlow', age=31, city='Lisbon')", "name='Tilda', age=58"],
    "serve_client.py": [
        "You live in Lisbon.",
        "You live in Kyoto.",
        "-- a stream\nYour name is Marlow.\n",
    ],
    "demo.py": [
        "It recalled 3 of 3 facts.",
        "tokens, in 6 turns",
        "202,752 bytes",
        "time to live",
        "No transcript is stored",
    ],
}
ELSEWHERE = {"train_demo_model.py"}


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
