"""The report's page as text: every section, nothing from outside, nothing that was said."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from langchain_rwkv_state.state import calibrate, difference_map, head_maps, inspect
from langchain_rwkv_state.store import LogEntry, SessionInfo
from langchain_rwkv_state.toolbox.recall import Point, Recall, Section, Series
from langchain_rwkv_state.views.page import report_page
from langchain_rwkv_state.views.session_report import SessionReport
from tests.helpers.states import random_state
from tests.unit_tests.state.conftest import LAYOUTS

HOSTILE = '</title><script>alert(1)</script><img src=x onerror="x">\'&\u202e\x1b\n'
VOID = {"meta", "line", "rect", "circle", "polyline", "img", "link"}


class Strict(HTMLParser):
    """Reads a page and insists that every element is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID and (not self.open or self.open[-1] != tag):
            return  # <rect ...><title/></rect>
        assert self.open
        assert self.open.pop() == tag


def read(page):
    strict = Strict()
    strict.feed(page)
    strict.close()
    assert strict.open == []
    return strict.seen


def report(version=7, **changes):
    a, b = (random_state([n] * n, layout=LAYOUTS[version]) for n in (1, 2))
    info = SessionInfo("bob", "ref", 2, 2, 100, 1_000.0, 2_000.0, math.inf)
    refs = [f"rwkv1-{c * 64}" for c in "ab"]
    made = SessionReport(
        info=info,
        log=(
            LogEntry(refs[0], refs[1], 2, 2_000.0, True),
            LogEntry(refs[1], None, 1, 1_000.0, False),
        ),
        layout=b.layout,
        fingerprint=b.fingerprint,
        inspection=inspect(b),
        healthy=None,
        maps=head_maps(b),
        difference=difference_map(b, a),
        recall=None,
        made_seconds=3_000.0,
        version="1.2.3",
    )
    return replace(made, **changes)


def recall(fingerprint="model", name="demo", at=(0, 4, 30)):
    points = tuple(Point(x, 20, 40) for x in at)
    section = Section(f"distance{name}", name, name, (Series(name, points),) * 2)
    return Recall(name, fingerprint, (section,))


@pytest.mark.parametrize("version", LAYOUTS)
def test_every_version_has_every_section_and_a_cell_for_each_head(version):
    given = report(version, recall=recall())
    seen = read(report_page(given))
    ids = [attrs["id"] for tag, attrs in seen if tag == "section"]
    assert ids == ["session", "log", "sizes", "health", "maps", "recall"]
    cells = [tag for tag, attrs in seen if attrs.get("class") == "cell"]
    layers, heads = given.maps[0].shape
    assert len(cells) == 3 * layers * heads


def test_the_page_forbids_everything_but_its_own_style():
    page = report_page(report())
    policy = next(a for t, a in read(page) if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img|\son\w+=", page)
    for name in ("src", "href", "srcset", "action"):
        assert f" {name}=" not in page


def test_names_and_titles_that_are_hostile_are_only_text():
    given = report()
    plain = [tag for tag, _ in read(report_page(replace(given, recall=recall())))]
    hostile = replace(
        given,
        info=replace(given.info, session=HOSTILE),
        recall=recall(fingerprint=given.fingerprint, name=HOSTILE),
    )
    page = report_page(hostile)
    assert [tag for tag, _ in read(page)] == plain
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") > 5


def test_unread_messages_are_counted_and_not_shown():
    given = report()
    info = replace(given.info, unread=('{"content": "a secret"}', '{"content": "another"}'))
    page = report_page(replace(given, info=info))
    assert "2 messages" in page
    assert "secret" not in page


def test_references_are_not_shown_in_full():
    page = report_page(report())
    assert "rwkv1-aaaaaaaa" in page
    assert "a" * 20 not in page


def test_the_log_says_what_each_turn_read_and_what_is_kept():
    page = report_page(report())
    log = page[page.index('id="log"') : page.index('id="sizes"')]
    rows = re.findall(r"<tr.*?</tr>", log)[1:]
    assert len(rows) == 2
    assert "+1" in rows[0]
    assert ">yes<" in rows[0]
    assert ">no<" in rows[1]


def test_a_log_that_was_cut_says_so():
    given = report()
    page = report_page(replace(given, info=replace(given.info, n_turns=150)))
    assert "The log keeps its last 2 of 150 turns." in page
    assert "+1" in page  # between the two that it keeps


def test_healthy_ranges_are_shown_where_they_judged():
    state = random_state([2, 2], layout=LAYOUTS[7])
    healthy = calibrate([state, state])
    judged = report(healthy=healthy, inspection=inspect(state, healthy=healthy))
    assert "Usual RMS" in report_page(judged)
    assert "Usual RMS" not in report_page(report())
    assert "rwkv-state calibrate" in report_page(report())


def test_without_a_state_before_the_page_says_why_there_is_no_third_map():
    page = report_page(report(difference=None))
    assert page.count("data-map=") == 2
    assert "The state before is not kept" in page


def test_recall_names_its_command_and_its_model():
    page = report_page(report())
    assert "rwkv-state recall --model M --json recall.json" in page
    ours, others = recall(), recall(fingerprint="another")
    assert "data-other-model" not in report_page(report(recall=ours))
    assert "data-other-model" in report_page(report(recall=others))


@pytest.mark.parametrize("at", [(0, 4, 30), ("exact", "int8"), (1,), (0, 1, 1000), (0, 0)])
def test_recall_is_drawn_whatever_its_points_are(at):
    page = report_page(report(recall=recall(at=at)))
    read(page)
    assert "20/40" in page


def test_recall_without_points_or_series_is_no_error():
    for series in ((), (Series("state", ()),)):
        empty = Recall("demo", "model", (Section("distance", "Recall", "turns", series),))
        read(report_page(report(recall=empty)))


def test_the_same_report_is_the_same_page():
    assert report_page(report()) == report_page(report())
