"""Ctrl-C in processes that need no model: in imports, in a command, in a destructor, at the end."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")

_PRESS = "import os, signal\ndef press(): os.kill(os.getpid(), signal.SIGINT)\n"


def _ended(code, *, ignoring=False):
    """Runs a program; returns its exit code, what it printed and what it said."""
    handler = signal.SIG_IGN if ignoring else signal.SIG_DFL
    done = subprocess.run(
        [sys.executable, "-c", _PRESS + code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", [0, 5, 100, 300])
def test_in_the_imports_of_a_command_it_ends_at_once(number):
    code = f"""
import sys
from langchain_rwkv_state.__main__ import main
class Finder:
    left = {number}
    def find_spec(self, *_):
        self.left -= 1
        if self.left < 0:
            press()
sys.meta_path.insert(0, Finder())
sys.argv = ["rwkv-state", "doctor", "--store", "/nowhere"]
main()
"""
    assert _ended(code) == (130, "", "Stopped.\n")


_COMMAND = """
import sys
from pathlib import Path
from langchain_rwkv_state import _stopping as stopping
stopping.listen()
from langchain_rwkv_state.cli import app
from langchain_rwkv_state._files import whole_file
@app.command()
def act(path: Path):
    {act}
    print("kept on")
app()
"""


def _acts(path, act):
    text = _COMMAND.format(act=act.replace("\n", "\n    "))
    return _ended(
        text.replace("import sys\n", f"import sys; sys.argv = ['x', 'act', {path!r}]\n", 1)
    )


def test_a_command_takes_back_what_it_began(tmp_path):
    act = "with whole_file(path) as file:\n    file.write(b'half')\n    press()"
    assert _acts(str(tmp_path / "out"), act) == (130, "", "Stopped.\n")
    assert list(tmp_path.iterdir()) == []


def test_one_that_an_import_in_a_command_would_swallow_is_heard(tmp_path):
    (tmp_path / "swallows.py").write_text(
        "import __main__\ntry:\n    __main__.press()\nexcept BaseException:\n    pass\n"
    )
    act = "sys.path.insert(0, str(path))\nimport swallows"
    assert _acts(str(tmp_path), act) == (130, "", "Stopped.\n")


def test_a_second_one_does_not_wait(tmp_path):
    act = "try:\n    press()\nfinally:\n    press()\n    import time\n    time.sleep(60)"
    assert _acts(str(tmp_path), act) == (130, "", "Stopped.\n")


def test_one_that_a_destructor_swallows_is_heard(tmp_path):
    act = "class Gone:\n    def __del__(self): press()\nGone()"
    assert _acts(str(tmp_path), act) == (130, "", "Stopped.\n")


def test_one_that_a_command_answers_itself_is_its_own(tmp_path):
    act = "try:\n    press()\nexcept KeyboardInterrupt:\n    print('heard')"
    assert _acts(str(tmp_path), act) == (0, "heard\nkept on\n", "")


def test_when_all_is_done_it_changes_nothing(tmp_path):
    act = "class Late:\n    def __del__(self, press=press): press()\nsys.modules['late'] = Late()"
    assert _acts(str(tmp_path), act) == (0, "kept on\n", "")


def test_a_process_that_was_started_to_ignore_it_ignores_it():
    code = (
        "from langchain_rwkv_state import _stopping as stopping\nstopping.listen()\n"
        "with stopping.InOrder(): press()\nprint('kept on')"
    )
    assert _ended(code, ignoring=True) == (0, "kept on\n", "")
