"""``rwkv-state recall``: what the built-in model recalls, and the same question to any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.demo import RECALL_PATH
from langchain_rwkv_state.runtime.registry import MODELS
from langchain_rwkv_state.state import CODECS
from langchain_rwkv_state.toolbox.recall import SECTIONS, Recall, measure
from langchain_rwkv_state.toolbox.recall.cases import ALPHAS, COUNTS, STRANGER, ZERO
from langchain_rwkv_state.toolbox.recall.talk import Talk

N = 6
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return measure("demo", n=N, distances=[8, 0, 8])


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["recall", *words], env={"COLUMNS": "150"})


def points(found, section, series):
    named = {each.name: each for each in found.section(section).series}
    return {point.at: point for point in named[series].points}


def test_every_section_is_measured_with_every_question(found):
    assert [section.name for section in found] == list(SECTIONS)
    assert {p.n for p in points(found, "distance", "state").values()} == {N}
    assert {at: p.n for at, p in points(found, "facts", "state").items()} == {
        count: N * count for count in COUNTS
    }
    assert list(points(found, "codecs", "recalled")) == [*CODECS, ZERO, STRANGER]


def test_the_built_in_model_recalls_and_its_state_answers_as_its_transcript(found):
    for section in ("distance", "facts"):
        state = points(found, section, "state")
        assert state == points(found, section, "transcript read again")
        assert all(point.right >= 0.8 * point.n for point in state.values())
    assert list(points(found, "distance", "state")) == [0, 8]


def test_the_controls_know_nothing_and_lossless_codecs_lose_nothing(found):
    codecs = points(found, "codecs", "recalled")
    assert codecs[ZERO].right == codecs[STRANGER].right == 0
    assert codecs["exact"] == codecs["zstd"].__class__("exact", codecs["zstd"].right, N)
    assert codecs["exact"].right >= N - 1


def test_the_ends_of_a_blend_are_the_two_conversations(found):
    first = points(found, "blends", "first name")
    second = points(found, "blends", "second name")
    assert list(first) == list(ALPHAS)
    assert (first[0.0].right, second[1.0].right) == (0, 0)
    assert min(first[1.0].right, second[0.0].right) >= N - 1


def test_forgetting_everything_forgets_the_fact(found):
    decays = points(found, "decays", "recalled")
    assert decays[1.0].right >= N - 1
    assert decays[0.1].right <= 1


def test_two_runs_find_the_same_and_leave_no_model_behind():
    held = len(MODELS)
    seen: list[tuple[int, int]] = []
    one, other = (
        measure("demo", n=3, only=["decays"], on_progress=lambda *each: seen.append(each))
        for _ in range(2)
    )
    assert one == other
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    assert len(MODELS) == held


def test_a_run_that_is_broken_off_holds_no_further_conversations(monkeypatch):
    held, said = len(MODELS), []
    say = Talk.say

    def counted(talk, text):
        said.append(text)
        return say(talk, text)

    def enough(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(Talk, "say", counted)
    with pytest.raises(KeyboardInterrupt):
        measure("demo", n=200, only=["distance"], distances=[0, 5], on_progress=enough)
    assert len(said) < 200 * 6 * 3 / 4
    assert len(MODELS) == held


@pytest.mark.parametrize("version", [4, 6, 7])
def test_the_same_command_takes_any_model(run, tiny_model, version, tmp_path):
    result = run("--model", str(tiny_model(version)), "-n", "1", "--only", "facts", "--json", "f")
    assert result.exit_code == 0, result.output
    found = Recall.from_json((tmp_path / "f").read_text())
    assert found.model == str(tiny_model(version))
    assert found.fingerprint.startswith(f"rwkv{version}-")
    assert sum(point.n for point in found.sections[0].series[0].points) == sum(COUNTS)


def test_the_command_prints_draws_and_keeps_what_it_found(run, tmp_path):
    words = ["-n", "2", "--only", "distance", "--only", "blends", "--distances", "0,1"]
    result = run(*words, "--json", "found.json", "--plot", "found.png")
    assert result.exit_code == 0, result.output
    found = Recall.from_json((tmp_path / "found.json").read_text())
    assert [section.name for section in found] == ["distance", "blends"]
    lines = result.stdout.splitlines()
    for section in found:
        shown = [line for line in lines[lines.index(section.title) :] if "/2" in line]
        assert len(shown) >= len(section.series[0].points)
        for line, point in zip(shown, section.series[0].points, strict=False):
            assert line.split()[0] == str(point.at)
            assert f"{point.right}/{point.n}" in line
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
    assert [line.partition(",")[0] for line in lines[-2:]] == [
        "Wrote found.json",
        "Wrote found.png",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "all"], "none of distance"),
        (["--distances", "1,x"], "no numbers of turns"),
        (["--distances", "-1"], "no numbers of turns"),
        (["-n", "0"], "Invalid value for"),
        (["--model", "nothing.pth"], "nothing.pth"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(run, words, said):
    result = run(*words)
    assert result.exit_code in (1, 2)
    assert said in result.output


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    run, option, tmp_path, monkeypatch
):
    monkeypatch.setattr("langchain_rwkv_state.toolbox.recall.measure", None)
    kept = tmp_path / "kept.png"
    kept.write_text("mine")
    result = run(option, "kept.png")
    assert result.exit_code == 1
    assert "there already" in result.stderr
    assert kept.read_text() == "mine"
    assert run(option, "nowhere/kept.png").exit_code == 1


def test_the_figures_that_come_with_the_model_are_those_of_the_benchmark(found):
    kept = Recall.from_json(RECALL_PATH.read_text())
    measured = ROOT / "benchmarks" / "results" / "retention.json"
    assert kept == Recall.from_dict(json.loads(measured.read_text())["results"])
    assert kept.settings["n"] == 300
    assert kept.fingerprint == found.fingerprint
    for section in found:
        assert kept.section(section.name) is not None


def test_settings_that_make_no_sense_are_refused():
    wrong: list[dict[str, Any]]
    wrong = [{"only": []}, {"only": ["none"]}, {"n": 0}, {"distances": [-1]}]
    wrong += [{"codec_distance": -1}, {"distances": []}]
    for settings in wrong:
        with pytest.raises(ValueError, match=r"Sections are|must be"):
            measure("demo", **settings)
