"""Runs headless Chromium for tests: what a page looks like once rendered, and what was wrong.

The browser has no network, a profile of its own and no say in anything else. A missing picture of a
file page is told nowhere, so `problems` also looks for what a page would load.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 240
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
    "--enable-logging=stderr",
)
_CONSOLE = re.compile(r":CONSOLE[:(]\d+\)?\] (.*)")
_LOADING = (
    "src",
    "srcset",
    "href",
    "xlink:href",
    "data",
    "poster",
    "background",
    "action",
    "xmlns",
)


def find_chromium() -> str | None:
    """Returns a browser that runs, ``$CHROMIUM`` first; ``None`` where there is none."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        found = shutil.which(name) if name else None
        if found is None:
            continue
        asked = subprocess.run([found, "--version"], capture_output=True, timeout=60, check=False)
        if asked.returncode == 0:
            return found
    return None


@dataclass
class Element:
    """One element of a rendered page: tag, attributes, and the text inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        self._open.append(element)

    def handle_endtag(self, tag):
        while self._open and self._open.pop().tag != tag:
            pass  # elements that need no end, such as <meta>

    def handle_data(self, data):
        for element in self._open:
            element.text += data


@dataclass
class Rendered:
    """A page as the browser has it."""

    dom: str
    console: list[str]
    elements: list[Element] = field(default_factory=list)

    def all(self, tag: str, kind: str | None = None) -> list[Element]:
        """Returns the elements of a tag, and of a class where one is named."""
        return [e for e in self.elements if e.tag == tag and (kind is None or kind in e.classes)]

    @property
    def problems(self) -> list[str]:
        """What is wrong: console messages, scripts, and whatever would be loaded."""
        found = [f"console: {line}" for line in self.console]
        found += ["a script" for _ in self.all("script")]
        for element in self.elements:
            for name, value in element.attributes.items():
                if name in _LOADING or "url(" in value or "://" in value:
                    found.append(f"<{element.tag} {name}={value!r}>")
        found += [f"style: {x}" for x in re.findall(r"@import[^;]*|url\([^)]*\)", self.dom)]
        return found


def rendered(chromium: str, page: Path, profile: Path, *flags: str) -> Rendered:
    """Opens a file in the browser and returns what came of it."""
    done = subprocess.run(
        [chromium, *_FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    reader = _Reader()
    reader.feed(done.stdout)
    return Rendered(done.stdout, _CONSOLE.findall(done.stderr), reader.elements)


def screenshot(
    chromium: str, page: Path, profile: Path, picture: Path, width: int, height: int
) -> None:
    """Takes a picture of a page in a window of that size."""
    size = f"--window-size={width},{height}"
    wanted = (size, "--hide-scrollbars", f"--screenshot={picture}")
    subprocess.run(
        [chromium, *_FLAGS, *wanted, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )


def width_at(chromium: str, page: Path, profile: Path, width: int) -> int:
    """Returns how wide a page's content is in a window of that width.

    A page around it measures it: the page itself runs no script.
    """
    around = page.with_name(f"around-{page.stem}-{width}.html")
    around.write_text(
        f'<!doctype html><iframe id="page" src="{page.name}" style="width:{width}px;border:0">'
        "</iframe><output></output><script>onload = () => {"
        'const seen = document.getElementById("page").contentDocument.documentElement;'
        'document.querySelector("output").textContent = seen.scrollWidth;}</script>'
    )
    seen = rendered(chromium, around, profile, "--allow-file-access-from-files")
    return int(seen.all("output")[0].text)
