"""What is handed out: the sdist makes the wheel, and the wheel holds a conversation by itself.

The wheel goes into an empty environment, in which everything else is that of the running one. All
of this runs outside the working tree, isolated, so that no import comes from there.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

import langchain_rwkv_state

ROOT = Path(__file__).parents[2]
TALK = """
import pathlib, sys
import langchain_rwkv_state
from langchain_rwkv_state import ChatRWKV
assert pathlib.Path(langchain_rwkv_state.__file__).is_relative_to(sys.prefix)
bob = ChatRWKV(model="demo", temperature=0).with_session("bob")
print(bob.invoke("Where do I live?").text, bob.invoke("What is my name?").text)
"""


def run(*command: object, folder: Path, typed: str = "") -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"RWKV_STATE_DIR": str(folder / "states"), "PYTHONUTF8": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=env, input=typed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The programs of an environment that has the wheel, and the running one's packages."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    paths = {"base": str(home), "platbase": str(home)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    others = [each for each in sys.path if Path(each).name == "site-packages"]
    (site / "base.pth").write_text("\n".join(others))
    scripts = Path(sysconfig.get_path("scripts", "venv", paths))
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install")
    run(*pip, "--no-index", "--no-deps", "--ignore-installed", wheel, folder=home)
    return scripts


def test_a_conversation_by_the_wheel_alone_at_the_terminal_and_then_from_python(scripts, tmp_path):
    said = "My name is Marlow.\nI live in Lisbon.\n"
    run(scripts / "rwkv-state", "chat", "--session", "bob", folder=tmp_path, typed=said)
    told = run(scripts / "python", "-I", "-c", TALK, folder=tmp_path)
    assert told == "You live in Lisbon. Your name is Marlow.\n"


def test_the_wheel_has_what_is_no_python_and_nothing_of_the_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith("dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(about))
    package = ROOT / "langchain_rwkv_state"
    ours = [
        each for each in package.rglob("*") if each.is_file() and "__pycache__" not in each.parts
    ]
    assert {each.relative_to(ROOT).as_posix() for each in ours} <= names
    for name in ("py.typed", "runtime/native/kernels.cpp", "runtime/native/sampling.cpp"):
        assert f"langchain_rwkv_state/{name}" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"langchain_rwkv_state"}
    assert metadata["Name"] == "langchain-rwkv-state"
    assert metadata["Version"] == langchain_rwkv_state.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_sdist_has_what_its_tests_and_pages_need(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = ("Makefile", "mkdocs.yml", "constraints.txt", "docs/index.md", "tests/conftest.py")
    assert set(needed) <= names
    assert not [name for name in names if name.startswith((".venv", "site/", "dist/"))]
