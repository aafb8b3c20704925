"""The way from `invoke` to a tensor and back is the one that CONTRIBUTING.md tells."""

import re
import shutil
import sys
import threading
from pathlib import Path

import langchain_rwkv_state
from langchain_rwkv_state import ChatRWKV, MemoryStateStore, PrefixStateCache
from langchain_rwkv_state.demo import MODEL_PATH

HOUSE = Path(langchain_rwkv_state.__file__).parent
MAP = HOUSE.parent / "CONTRIBUTING.md"


def files_run_by_one_call(model: Path) -> set[str]:
    """Returns the files of the package that run in a call whose prompt begins with a known one."""
    seen: set[str] = set()
    on = threading.Event()

    def note(frame, event, _):
        if on.is_set() and event == "call":
            seen.add(frame.f_code.co_filename)

    threading.setprofile(note)  # for the engine's worker, which starts with the first call
    try:
        chat = ChatRWKV(
            model=str(model),
            store=MemoryStateStore(),
            prefix_cache=PrefixStateCache(),
            max_tokens=4,
            temperature=0,
        )
        chat.invoke("What is your name?")
        before = sys.getprofile()
        sys.setprofile(note)
        on.set()
        chat.invoke("What is your name? And how old are you?")
        on.clear()
        sys.setprofile(before)
    finally:
        threading.setprofile(None)
    chat.unload()
    return {Path(name).relative_to(HOUSE).as_posix() for name in seen if str(HOUSE) in name}


def test_it_is_nine_files_and_each_of_them_runs(tmp_path):
    shutil.copytree(MODEL_PATH.parent, tmp_path / "demo")  # a model, and so a worker, of its own
    told = MAP.read_text().split("### From `invoke`")[1].split("Beside the way")[0]
    steps = re.split(r"^\d\. ", told, flags=re.M)[1:]
    named = [re.search(r"`([\w/]+\.py)`", step) for step in steps[:-1]]
    way = [found[1] for found in named if found] + ["store/store.py"]
    assert "`store/store.py`" in steps[-1]
    assert len(set(way)) == 9
    assert set(way) <= files_run_by_one_call(tmp_path / "demo" / MODEL_PATH.name)


def test_what_stands_beside_it_is_there():
    beside = MAP.read_text().split("Beside the way")[1].split("## How to add")[0]
    for row in re.findall(r"^\| (`.*?) \|", beside, flags=re.M):
        folder = ""
        for name in re.findall(r"`([\w/]+\.py)`", row):
            folder = name.rpartition("/")[0] or folder
            assert (HOUSE / folder / name.rpartition("/")[2]).exists() or (HOUSE / name).exists()
