"""A session's report as a browser shows it: whole, silent, alone, and no wider than a phone."""

import pytest

from langchain_rwkv_state.demo import RECALL_PATH
from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.toolbox.recall import Point, Recall, Section, Series
from tests.helpers.browser import find_chromium, rendered, width_at
from tests.helpers.command import rwkv_state

SAID = "My name is Marlow.\nI live in Lisbon.\nWhat is my name?\n"
PHONE = 390
NAME = 'bob <b>&"x'


def _run(store, *words, text=None):
    done = rwkv_state(store, *words, text=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def chromium():
    found = find_chromium()
    if found is None:
        pytest.skip("No browser: install chromium (apt-get install chromium), or set $CHROMIUM.")
    return found


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A conversation with the built-in model, and what its state is made of."""
    store = tmp_path_factory.mktemp("talk") / "store"
    _run(store, "chat", "-s", NAME, "--temperature", "0", text=SAID)
    with DiskStateStore(store) as opened:
        head = opened.head(NAME)
        assert head is not None
        return store, opened.get(head)


@pytest.fixture(scope="module")
def recall():
    def points(*rights):
        return tuple(Point(4 * n, right, 40) for n, right in enumerate(rights))

    def of(fingerprint):
        distance = Section(
            "distance",
            "Recall by distance",
            "other turns",
            (Series("state", points(40, 39, 30)), Series("transcript", points(40, 38, 31))),
        )
        labels = tuple(Point(name, 40, 40) for name in ("exact", "int8"))
        codecs = Section("codecs", "Recall after each codec", "codec", (Series("state", labels),))
        return Recall("demo", fingerprint, (distance, codecs))

    return of


@pytest.fixture(scope="module")
def page(session, recall, tmp_path_factory):
    store, state = session
    folder = tmp_path_factory.mktemp("page")
    (folder / "recall.json").write_text(recall(state.fingerprint).to_json())
    words = ["--recall", str(folder / "recall.json")]
    said = _run(store, "report", NAME, str(folder / "bob.html"), *words)
    assert said.startswith(f"Wrote {folder / 'bob.html'}, ")
    return folder / "bob.html"


@pytest.fixture(scope="module")
def seen(chromium, page, tmp_path_factory):
    return rendered(chromium, page, tmp_path_factory.mktemp("profile"))


def test_nothing_is_wrong_and_nothing_is_loaded(seen):
    assert seen.problems == []


def test_every_section_is_there(seen):
    titles = [each.text for each in seen.all("h2")]
    assert titles == ["Session", "Log", "Sizes", "Health", "Heat maps", "Recall"]
    assert [each.attributes["id"] for each in seen.all("section")] == [
        *("session", "log", "sizes", "health", "maps", "recall")
    ]
    assert seen.all("h1")[0].text == NAME
    for text in ("Marlow", "Lisbon"):
        assert text not in seen.dom


def test_the_log_has_a_row_for_each_turn(seen):
    log = next(each for each in seen.all("section") if each.attributes["id"] == "log")
    assert log.text.count("rwkv1-") == len(SAID.splitlines())
    assert seen.all("dd")[0].text == str(len(SAID.splitlines()))


def test_heat_maps_have_a_cell_for_each_head_of_each_layer(seen, session):
    layout = session[1].layout
    maps = [each.attributes["data-map"] for each in seen.all("figure", "map")]
    assert maps == ["norm", "rank", "difference"]
    cells = seen.all("rect", "cell")
    assert len(cells) == len(maps) * layout.n_layer * layout.n_head
    assert {each.text.partition(":")[0] for each in cells} == {
        f"layer {layer}, head {head}"
        for layer in range(layout.n_layer)
        for head in range(layout.n_head)
    }


def test_the_recall_curve_is_drawn(seen):
    assert [each.attributes["data-section"] for each in seen.all("figure", "recall")] == [
        *("distance", "codecs")
    ]
    tips = [each.text for each in seen.all("circle", "dot")]
    assert "transcript: 31 of 40 at 8" in tips
    assert len(seen.all("rect", "bar")) == 2
    assert "data-other-model" not in seen.dom


def test_the_built_in_models_recall_comes_with_it(chromium, session, tmp_path):
    _run(session[0], "report", NAME, str(tmp_path / "bob.html"))
    plain = rendered(chromium, tmp_path / "bob.html", tmp_path / "profile")
    assert plain.problems == []
    assert [each.attributes["data-section"] for each in plain.all("figure", "recall")] == [
        *("distance", "facts", "codecs", "blends", "decays")
    ]
    assert "data-other-model" not in plain.dom
    assert Recall.from_json(RECALL_PATH.read_text()).fingerprint == session[1].fingerprint


def test_recall_of_another_model_is_called_that(chromium, session, recall, tmp_path):
    (tmp_path / "recall.json").write_text(recall("another <i>model</i>").to_json())
    words = ["--recall", str(tmp_path / "recall.json")]
    _run(session[0], "report", NAME, str(tmp_path / "bob.html"), *words)
    other = rendered(chromium, tmp_path / "bob.html", tmp_path / "profile")
    assert other.problems == []
    note = next(each for each in other.all("p", "note"))
    assert "another model than this session's: another <i>model</i>" in note.text


@pytest.mark.parametrize("width", [PHONE, 1200])
def test_the_page_is_no_wider_than_the_window(chromium, page, tmp_path, width):
    assert width_at(chromium, page, tmp_path, width) <= width


def test_the_same_checks_find_what_is_wrong(chromium, page, tmp_path):
    """The controls: errors, missing pictures, scripts and a page too wide are all noticed."""
    wrong = '<img src="missing.png"><script>console.error("on purpose")</script>'
    wide = '<div style="width:900px">wide</div>'
    text = page.read_text()

    (tmp_path / "ours.html").write_text(text.replace("</main>", f"{wrong}{wide}</main>"))
    found = rendered(chromium, tmp_path / "ours.html", tmp_path / "profile").problems
    assert any("Content Security Policy" in each and "missing.png" in each for each in found)
    assert any("Content Security Policy" in each and "inline script" in each for each in found)
    assert "<img src='missing.png'>" in found
    assert "a script" in found
    assert width_at(chromium, tmp_path / "ours.html", tmp_path / "profile", PHONE) > PHONE

    (tmp_path / "bare.html").write_text(f"<!doctype html><title>bare</title>{wrong}")
    bare = rendered(chromium, tmp_path / "bare.html", tmp_path / "profile").problems
    assert any(each.startswith('console: "on purpose"') for each in bare)
    assert "<img src='missing.png'>" in bare
