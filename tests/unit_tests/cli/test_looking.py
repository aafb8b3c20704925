"""The commands that look: they say what they see, change nothing, and write over nothing."""

from __future__ import annotations

import io
import json
import math
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app, output
from langchain_rwkv_state.state import (
    Healthy,
    RWKVState,
    StateLayout,
    calibrate,
    distance,
    head_maps,
)
from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.toolbox.recall import Recall
from tests.helpers.states import random_state

LAYOUT = StateLayout.of(7, n_layer=2, n_embd=64, head_size=32)
ALICE, BEFORE, BOB = (random_state(n, layout=LAYOUT) for n in ([1], [2], [2, 3]))
HOUR = 3_600.0


def commit(store, session, state):
    head = store.head(session)
    store.commit(session, store.stage(state, parent=head), head)


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        commit(opened, "alice", ALICE)
        commit(opened, "bob", BEFORE)
        commit(opened, "bob", BOB)
        yield opened


@pytest.fixture
def run(store):
    def call(*words):
        return CliRunner().invoke(app, [*map(str, words), "--store", str(store.path)])

    return call


def broken(state=ALICE):
    tensors = {name: state[name] for name in state}
    tensors["blocks.1.att_kv"][0, 0, 0] = math.nan
    return RWKVState(state.layout, tensors, state.derivation.read([9]))


# -- inspect -------------------------------------------------------------------------------------


def test_inspect_draws_a_picture(run, tmp_path):
    for ending in ("png", "svg"):
        result = run("inspect", "bob", "--plot", tmp_path / f"bob.{ending}")
        assert result.exit_code == 0
        assert f"Wrote {tmp_path / f'bob.{ending}'}" in result.stderr
        assert (tmp_path / f"bob.{ending}").stat().st_size > 1_000


def test_inspect_as_json_has_figures_and_maps(run):
    result = run("inspect", "bob", "--json")
    found = json.loads(result.stdout)
    assert (found["version"], found["layers"], found["tokens"]) == (7, 2, 2)
    assert len(found["tensors"]) == 6
    norm, _ = head_maps(BOB)
    assert found["maps"][0]["values"] == [list(row) for row in norm.values]
    assert found["maps"][1]["name"] == "rank"
    assert found["verdict"].startswith("Finite")


def commit_unchecked(store: DiskStateStore, session: str, state: RWKVState) -> None:
    """Commits what no store takes any more, as one of an earlier release may hold it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("langchain_rwkv_state.state.require_finite", lambda _: None)
        commit(store, session, state)


def test_a_broken_state_is_json_all_the_same(run, store):
    commit_unchecked(store, "ill", broken())
    result = run("inspect", "ill", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["maps"][0]["values"][1][0] is None


@pytest.mark.slow
def test_looking_does_not_renew(run, store, tmp_path):
    with DiskStateStore(store.path, clock=lambda: time.time() - HOUR) as an_hour_ago:
        an_hour_ago.commit("worn", an_hour_ago.stage(ALICE), None, ttl=2 * HOUR)
    expires = store.session("worn", renew=False).expires_seconds
    for words in (
        ("inspect", "worn"),
        ("diff", "worn", "bob"),
        ("calibrate", "worn", "bob", "--out", tmp_path / "health.json"),
        ("watch", "worn", "--once"),
        ("report", "worn", tmp_path / "worn.html"),
        ("codecs", "worn"),
        ("blend", "worn", "bob", "--into", "blended"),
        ("decay", "worn", "0.5", "--into", "decayed"),
        ("renormalise", "worn", "--into", "even"),
        ("export", "worn", tmp_path / "worn.safetensors"),
        ("export", "worn", tmp_path / "worn.zip"),
    ):
        result = run(*words)
        assert result.exit_code == 0, result.stderr
        assert store.session("worn", renew=False).expires_seconds == expires
    store.head("worn")  # which is a use of it
    assert store.session("worn", renew=False).expires_seconds > expires + HOUR / 2


def test_a_picture_that_is_there_of_another_kind_or_of_nowhere_is_refused(run, tmp_path):
    there = tmp_path / "there.png"
    there.write_text("mine")
    for plot, said in (
        (there, "is there already"),
        (tmp_path / "x.bmp", ".png, .svg, .pdf"),
        (tmp_path / "none" / "x.png", "no directory"),
    ):
        for words in (("inspect", "bob"), ("diff", "alice", "bob")):
            result = run(*words, "--plot", plot)
            assert result.exit_code == 1
            assert said in result.stderr
            assert result.stdout == ""  # found out before anything is measured
    assert there.read_text() == "mine"


def test_without_matplotlib_a_picture_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = run("inspect", "bob", "--plot", tmp_path / "x.png")
    assert result.exit_code == 1
    assert "pip install 'langchain-rwkv-state[plots]'" in result.stderr
    assert run("inspect", "bob").exit_code == 0


# -- calibrate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("alice", "bob"), ("--all",)])
def test_calibrate_learns_from_sessions_and_inspect_judges_by_it(run, store, tmp_path, words):
    file = tmp_path / "health.json"
    result = run("calibrate", "--out", file, *words)
    assert result.exit_code == 0, result.stderr
    assert "Learnt from 2 states" in result.stdout
    assert Healthy.from_json(file.read_text()) == calibrate([ALICE, BOB])
    assert "Sound" in run("inspect", "bob", "--healthy", file).stdout

    large = {name: BOB[name] * 50 for name in BOB}
    commit(store, "large", RWKVState(LAYOUT, large, BOB.derivation.read([4])))
    result = run("inspect", "large", "--healthy", file)
    assert result.exit_code == 1
    assert "Unusual: 6 of 6 tensors" in result.stdout
    assert result.stdout.count("is usual for this model") == 6


def test_calibrate_writes_over_nothing(run, tmp_path):
    file = tmp_path / "health.json"
    file.write_text("mine")
    result = run("calibrate", "--out", file, "--all")
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert file.read_text() == "mine"


def test_calibrate_says_what_it_cannot_learn_from(run, store, tmp_path):
    file = tmp_path / "health.json"
    assert run("calibrate", "--out", file).exit_code == 2
    assert run("calibrate", "--out", file, "bob", "--all").exit_code == 2
    for words, said in (
        (("nobody", "bob"), "no session 'nobody'"),
        (("bob",), "two states"),
        (("bob", "bob"), "two states"),
    ):
        result = run("calibrate", "--out", file, *words)
        assert result.exit_code == 1
        assert said in result.stderr
    commit_unchecked(store, "ill", broken())
    assert "'ill' is broken" in run("calibrate", "--out", file, "--all").stderr
    store.delete_session("ill")
    commit(store, "other", random_state([1], layout=LAYOUT, fingerprint="another"))
    result = run("calibrate", "--out", file, "--all")
    assert "calibrate each model by itself" in result.stderr
    assert not file.exists()
    assert not list(tmp_path.glob(".health*"))


def test_ranges_of_another_model_or_of_no_kind_are_refused(run, tmp_path):
    others = [random_state([n], layout=LAYOUT, fingerprint="another") for n in (1, 2)]
    (tmp_path / "other.json").write_text(calibrate(others).to_json())
    (tmp_path / "half.json").write_text(
        Healthy("model", {"blocks.0.att_kv": (0.0, 9.0)}, 2).to_json()
    )
    (tmp_path / "none.json").write_text("{}")
    for name, said in (
        ("other", "calibrate with states of its own model"),
        ("half", "calibrate again"),
        ("none", "no healthy ranges"),
        ("missing", "missing.json"),
    ):
        result = run("inspect", "bob", "--healthy", tmp_path / f"{name}.json")
        assert result.exit_code == 1
        assert said in result.stderr


# -- diff ----------------------------------------------------------------------------------------


def test_diff_draws_where_the_difference_is(run, tmp_path):
    result = run("diff", "alice", "bob", "--plot", tmp_path / "diff.png")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split()[0] == "LAYER"
    assert (tmp_path / "diff.png").stat().st_size > 1_000


def test_states_of_different_models_are_told_apart_before_anything_else(run, store, tmp_path):
    commit(store, "other", random_state([1], layout=LAYOUT, fingerprint="another"))
    plot = tmp_path / "x.png"
    for metric in ("l2", "logits_kl"):
        result = run("diff", "alice", "other", "--metric", metric, "--plot", plot, "-m", "none.pth")
        assert result.exit_code == 1
        assert "'alice' and 'other' belong to different models" in result.stderr
        assert "fingerprint another" in result.stderr
    assert not plot.exists()


def test_logits_kl_asks_for_a_text_to_read(run):
    result = run("diff", "alice", "bob", "--metric", "logits_kl", "--probe", "")
    assert result.exit_code == 2
    assert "--probe" in result.stderr


def test_logits_kl_asks_the_model_that_read_the_states(run, tmp_path, make_chat, store):
    chat = make_chat(7)
    runtime, tokenizer = chat.loaded().runtime, chat.loaded().tokenizer
    a, b = (runtime.forward(ids, runtime.zero_state())[1] for ids in ([1, 2], [3]))
    commit(store, "a", a)
    commit(store, "b", b)
    words = ("diff", "a", "b", "--metric", "logits_kl", "--model", chat.model)
    result = run(*words, "--probe", "ab")
    assert result.exit_code == 0, result.stderr
    found = distance(a, b, "logits_kl", runtime=runtime, probe=tokenizer.encode("ab"))
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["LAYER", "WHOLE"]
    assert float(rows[-1][1]) == pytest.approx(found.total, rel=1e-2, abs=1e-6)
    assert run(*words).exit_code == 0  # the probe has a default

    result = run("diff", "alice", "bob", *words[3:])
    assert result.exit_code == 1
    assert "another model than" in result.stderr


# -- report --------------------------------------------------------------------------------------


def test_report_is_one_page_written_once(run, tmp_path):
    page = tmp_path / "bob.html"
    result = run("report", "bob", page)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {page}, ")
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert 'data-map="difference"' in text
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []

    again = run("report", "alice", page)
    assert again.exit_code == 1
    assert "is there already" in again.stderr
    assert page.read_text("utf-8") == text


def test_a_report_that_cannot_be_finished_leaves_nothing(run, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run("report", "bob", tmp_path / "bob.html")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_report_refuses_what_it_cannot_show(run, store, tmp_path):
    store.append_unread("waiting", ['{"type": "human"}'])
    page = tmp_path / "x.html"
    (tmp_path / "none.json").write_text("{}")
    for words, said, code in (
        (("nobody", page), "no session 'nobody'", 1),
        (("waiting", page), "has no state", 1),
        (("bob", tmp_path / "x.pdf"), ".html", 2),
        (("bob", tmp_path / "none" / "x.html"), "no directory", 1),
        (("bob", page, "--recall", tmp_path / "none.json"), "no recall figures", 1),
    ):
        result = run("report", *words)
        assert result.exit_code == code
        assert said in result.stderr
    assert not page.exists()


def test_recall_of_another_model_is_noted(run, tmp_path):
    for fingerprint, noted in (("model", False), ("another", True)):
        (tmp_path / "recall.json").write_text(Recall("demo", fingerprint, ()).to_json())
        page = tmp_path / f"{fingerprint}.html"
        result = run("report", "bob", page, "--recall", tmp_path / "recall.json")
        assert result.exit_code == 0
        assert ("another model" in result.stderr) is noted
        assert ("data-other-model" in page.read_text("utf-8")) is noted


def test_the_first_turn_has_no_map_of_what_it_moved(run, tmp_path):
    run("report", "alice", tmp_path / "alice.html")
    assert 'data-map="difference"' not in (tmp_path / "alice.html").read_text("utf-8")


# -- watch ---------------------------------------------------------------------------------------


def test_watch_once_shows_how_it_stands(run):
    result = run("watch", "bob", "--once")
    assert result.exit_code == 0
    assert result.stdout.startswith("turn 2  2 tokens  ")
    assert len(result.stdout.splitlines()) == 1
    moved = distance(BOB, BEFORE, "rms_relative").total
    assert f"moved {moved:.3f}" in result.stdout


def test_watch_once_of_nothing_is_an_error(run, tmp_path):
    result = run("watch", "nobody", "--once")
    assert result.exit_code == 1
    assert "no session 'nobody'" in result.stderr
    words = ["watch", "bob", "--once", "--store", str(tmp_path / "none")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "There is no store" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.fixture
def steps(monkeypatch):
    """Lets things happen at the pauses of `watch`, one at each."""
    left: list = []

    def pause(_):
        assert left, "watch looks for more than there is"
        left.pop(0)()

    from langchain_rwkv_state.store import events

    own = events.watch
    monkeypatch.setattr(
        events, "watch", lambda *words, **options: own(*words, **options, sleep=pause)
    )
    return left


def test_watch_prints_a_line_for_each_turn_and_ends_after_as_many(run, store, steps):
    steps += [
        lambda: commit(store, "new", BEFORE),
        lambda: None,
        lambda: commit(store, "new", BOB),
    ]
    result = run("watch", "new", "--turns", "2")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == "There is no such session yet: waiting for its first turn."
    assert [line[:6] for line in lines[1:]] == ["turn 1", "turn 2"]
    assert steps == []


def test_watch_says_when_a_session_goes_and_goes_on_when_it_comes_back(run, store, steps):
    steps += [
        lambda: store.delete_session("bob"),
        lambda: commit(store, "bob", ALICE),
        lambda: store.rewind("bob"),
        lambda: commit(store, "bob", BOB),
    ]
    result = run("watch", "bob", "--turns", "3")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("turn 2")
    assert lines[1] == "The session was deleted: waiting for one of its name."
    assert lines[2].startswith("turn 1")
    assert "moved -" in lines[2]
    assert lines[3] == "The session has no state yet: waiting for its first turn."
    assert lines[4].startswith("turn 1")


def test_ctrl_c_ends_it_cleanly(run, steps):
    def interrupt():
        raise KeyboardInterrupt

    steps.append(interrupt)
    result = run("watch", "bob")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "Traceback" not in result.output


def test_in_a_terminal_it_is_one_view_drawn_anew(run, store, steps, monkeypatch):
    steps += [lambda: commit(store, "bob", ALICE)]
    shown = Console(file=io.StringIO(), force_terminal=True, width=90, height=30)
    monkeypatch.setattr(output, "out", lambda: shown)
    result = run("watch", "bob", "--turns", "1")
    assert result.exit_code == 0
    drawn = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "turn" in drawn
    assert "LAST TURNS" in drawn
    assert "\x1b[" in drawn


@pytest.mark.parametrize("words", [("--every", "0"), ("--turns", "0")])
def test_watch_refuses_pauses_and_turns_that_are_none(run, words):
    assert run("watch", "bob", *words).exit_code == 2


def test_watch_waits_for_a_store_and_makes_none(tmp_path, monkeypatch):
    place = tmp_path / "later"

    def pause(_):
        assert not place.exists()
        with DiskStateStore(place) as made:
            commit(made, "bob", BOB)

    monkeypatch.setattr("langchain_rwkv_state.cli.watch.time.sleep", pause)
    words = ["watch", "bob", "--once", "--store", str(place)]
    assert CliRunner().invoke(app, words).exit_code == 1
    from langchain_rwkv_state.store import events

    own = events.watch

    def until_seen(*given, **options):
        yield next(own(*given, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(events, "watch", until_seen)
    result = CliRunner().invoke(app, ["watch", "bob", "--store", str(place)])
    assert result.exit_code == 0
    assert result.stdout.startswith("turn 1  ")


@pytest.mark.parametrize("command", ["calibrate", "watch", "report", "inspect", "diff"])
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--store" in result.stdout


@pytest.mark.parametrize("every", ["inf", "1e20", "nan", "0"])
def test_no_look_is_further_away_than_a_day(run, every):
    assert run("watch", "bob", "--every", every).exit_code == 2
