"""The documentation as a site: it builds without a complaint, and is read from a disk.

It is looked at without a network: what is fetched with one is missing elsewhere.
"""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from langchain_rwkv_state.cli import app
from tests.helpers.browser import find_chromium, rendered, width_at

ROOT = Path(__file__).parents[2]
PHONE = 390
_LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"([^\"]*)\"")
_STYLES = re.compile(r"<link\b[^>]*?\brel=\"(?:stylesheet|icon|preload)\"[^>]*?\bhref=\"([^\"]*)\"")
_LINKS = re.compile(r"<a\b[^>]*?\bhref=\"([^\"]*)\"")
_IDS = re.compile(r"\bid=\"([^\"]*)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: path.read_text("utf-8") for path in site.rglob("*.html")}


def test_every_page_is_in_the_site(site):
    for page in ROOT.glob("docs/**/*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched(site, pages):
    for path, text in pages.items():
        for address in (*_LOADED.findall(text), *_STYLES.findall(text)):
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"
            if path.name != "404.html" and not address.startswith("data:"):
                assert (path.parent / unquote(urlsplit(address).path)).is_file(), (path, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?https?:", style.read_text("utf-8"))


def test_every_link_leads_somewhere(pages):
    ids = {path: set(map(html.unescape, _IDS.findall(text))) for path, text in pages.items()}
    n_links = 0
    for path, text in pages.items():
        if path.name == "404.html":
            continue
        for link in map(html.unescape, _LINKS.findall(text)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not link:
                continue
            name = unquote(parts.path)
            target = Path(os.path.normpath(path.parent / name)) if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name} links to {link}"
            anchor = unquote(parts.fragment)
            if anchor and not anchor.startswith("__"):
                assert anchor in ids.get(target, ()), f"{path.name} links to {link}"
            n_links += 1
    assert n_links > 1000


def test_the_reference_has_every_command_and_public_name(site):
    commands = (site / "reference/commands.html").read_text("utf-8")
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f'id="rwkv-state-{name}"' in commands
    assert "<code>--store DIR|URL</code>" in commands
    for page, names in {
        "chat_models": (
            *("ChatRWKV.with_session", "ChatRWKV.with_sessions", "ChatRWKV.prefill"),
            *("ChatRWKV.watch_stats", "ModelStats", "StatsWatch.close", "RWKVLLM.generate"),
        ),
        "sessions": (
            *("RWKVSession.invoke", "RWKVSession.ask_aside", "RWKVSessions"),
            "RWKVStateHistory.add_messages",
        ),
        "stores": (
            *("DiskStateStore.backup", "StateStore.commit", "StateStore.blend", "SessionInfo"),
            "Backup",
        ),
        "states": (
            "blend",
            "distance",
            "Diff",
            "inspect",
            "memory",
            "motion",
            "RWKVState.n_tokens",
        ),
        "runtime": ("half_life", "load_runtime"),
    }.items():
        text = (site / f"reference/{page}.html").read_text("utf-8")
        for name in names:
            assert re.search(rf'id="langchain_rwkv_state[\w.]*\.{re.escape(name)}"', text), name
        assert "doctest:" not in text


@pytest.fixture(scope="module")
def chromium():
    found = find_chromium()
    if found is None:
        pytest.skip("No browser: install chromium (apt-get install chromium), or set $CHROMIUM.")
    return found


def test_search_works_from_a_disk(chromium, site, tmp_path):
    address = f"{(site / 'index.html').as_uri()}?q=transplant"
    (tmp_path / "go.html").write_text(f'<meta http-equiv="refresh" content="0; url={address}">')
    wait = "--virtual-time-budget=8000"
    seen = rendered(chromium, tmp_path / "go.html", tmp_path / "profile", wait)
    assert seen.console == []
    found = [link.attributes["href"] for link in seen.all("a", "md-search-result__link")]
    assert any("tutorials/states.html" in link for link in found), found


@pytest.mark.parametrize(
    "page", ["index", "tutorials/chat_service", "reference/chat_models", "gallery", "run_it"]
)
def test_no_page_is_wider_than_a_phone(page, chromium, site, tmp_path):
    assert width_at(chromium, site / f"{page}.html", tmp_path / "profile", PHONE) <= PHONE
