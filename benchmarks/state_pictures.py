"""Draws the pictures of states in docs/, from two conversations with the built-in model.

Heat maps, the difference of two states, the live view, and a report as a browser shows it (where
there is one). Nothing is measured here but what the pictures show. The pictures are what the
commands give; none is drawn by hand.

    python -m benchmarks.state_pictures [--out DIR]
"""

from __future__ import annotations

import io
import re
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks import common
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.cli.report import gather
from langchain_rwkv_state.state import RWKVState, difference_map, head_maps, inspect, motion
from langchain_rwkv_state.store.events import watch
from langchain_rwkv_state.views.plots.figure import save
from langchain_rwkv_state.views.plots.heat_plot import draw_maps
from langchain_rwkv_state.views.report.page import report_page
from langchain_rwkv_state.views.terminal.live_view import Frame, watch_view
from tests.helpers.browser import find_chromium, screenshot

BOB = (
    *("Hello.", "My name is Marlow.", "I live in Lisbon.", "What is my name?", "How are you?"),
    *("My favourite colour is green.", "Where do I live?"),
)
ADA = ("My name is Ada.", "I live in Paris.", "What is my name?")
COLUMNS = 84
WIDTH, HEIGHT = 920, 4590  # pixels, down to the end of the page


def draw(folder: Path) -> list[Path]:
    """Draws all pictures; returns their files."""
    store = MemoryStateStore()
    chat = ChatRWKV(model="demo", temperature=0, store=store, prefix_cache=False)
    try:
        frames = watched(chat, store)
        for said in ADA:
            chat.with_session("ada").invoke(said)
    finally:
        chat.unload()
    bob, ada = (store.get(store.head(name) or "") for name in ("bob", "ada"))
    files = [folder / name for name in ("heat_maps.png", "heat_difference.png", "watch.svg")]
    for old in files:
        old.unlink(missing_ok=True)
    save(draw_maps(head_maps(bob), f"bob: RWKV-7 after {bob.n_tokens} tokens"), files[0])
    save(draw_maps([difference_map(bob, ada)], "bob and ada: RWKV-7"), files[1])
    files[2].write_text(terminal(frames))
    chromium = find_chromium()
    if chromium is None:
        print("No chromium: the picture of the report stays as it is.")
        return files
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "bob.html"
        page.write_text(report_page(gather(store, "bob", None, None)), "utf-8")
        files.append(folder / "report.png")
        screenshot(chromium, page, Path(place) / "profile", files[-1], WIDTH, HEIGHT)
    return files


def watched(chat: ChatRWKV, store: MemoryStateStore) -> list[Frame]:
    """Holds the first conversation and watches it."""
    frames, before = [], None
    events = watch(store, "bob", sleep=lambda _: None)
    next(events)
    for said in BOB:
        chat.with_session("bob").invoke(said)
        event = next(events)
        info, state = event.info, event.state
        assert info is not None
        assert isinstance(state, RWKVState)
        seen = motion(state, before, inspect(state))
        times = (info.updated_seconds, info.expires_seconds)
        frames.append(Frame(info.n_turns, info.n_tokens, *times, seen))
        before = state
    return frames


def terminal(frames: list[Frame]) -> str:
    """Returns the live view as SVG; without the fonts that rich would have a browser load."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(watch_view("bob", frames, now_seconds=time.time(), columns=COLUMNS))
    drawn = console.export_svg(title="rwkv-state watch bob", unique_id="watch")
    return re.sub(r"@font-face \{[^}]*\}\s*", "", drawn)


def main() -> int:
    parser = common.parser("Draws the pictures of states in docs/.")
    folder = parser.parse_args().out or common.IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    for file in draw(folder):
        print(f"{file}, {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
