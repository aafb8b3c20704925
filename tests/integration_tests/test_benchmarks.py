"""Every benchmark runs, and asks for values that the demo model's training never drew.

Nothing here looks at a time or a percentage: with `--quick` both mean nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from langchain_core.messages import AIMessage
from langchain_core.messages.tool import tool_call

from benchmarks import cases, run_all, speed, tables, values
from benchmarks.agent_calls import SAMPLINGS, STATE, TRANSCRIPT, judged
from benchmarks.agent_thread import COSTS
from benchmarks.common import Check
from benchmarks.conversation import THINGS, question
from examples.demo_training import words
from examples.demo_training.inventory import Inventory
from langchain_rwkv_state.demo.held_out import is_held_out
from langchain_rwkv_state.tokenizer import WorldTokenizer
from langchain_rwkv_state.toolbox.recall.nouns import WORDS
from langchain_rwkv_state.toolbox.recall.values import KINDS, number
from tests.helpers import redis_server

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if ".finish(arguments)" in path.read_text("utf-8")
)
NEEDS = {
    "endurance": (os.name != "nt", "counts descriptors"),
    "model_files": (Path("/proc/self/clear_refs").exists(), "asks Linux for the peak of memory"),
    "serve_kills": (bool(redis_server.BINARY), "starts a redis-server"),
    "store": (hasattr(os, "fork"), "forks writers and kills them"),
    "stores": (bool(redis_server.BINARY), "starts a redis-server"),
}
OPTIONS = {
    "retention": ["-n", "1"],
    # A directory's workers are killed in serve/test_workers.py.
    "serve_kills": ["--store", "redis", "--seconds", "2", "--every", "0.9"],
}


class Results:
    """Runs each benchmark once, small, and keeps the JSON."""

    def __init__(self, directory):
        self.directory = directory

    def of(self, name):
        path = self.directory / f"{name}.json"
        if not path.exists():
            command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
            command += OPTIONS.get(name, [])
            done = subprocess.run(
                [*command, "--out", str(self.directory)], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("results"))


def test_all_benchmarks_are_run_together_but_for_the_hour_of_load():
    assert sorted((*run_all.BENCHMARKS, "endurance", "serve_crowd", "serve_kills")) == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_and_writes_its_json(name, results):
    if name in NEEDS and not NEEDS[name][0]:
        pytest.skip(f"It {NEEDS[name][1]}.")
    report = results.of(name)
    assert report["benchmark"] == name
    assert report["machine"]["cores"] >= 1
    assert report["results"]
    assert all(set(check) >= {"name", "measured", "target", "passed"} for check in report["checks"])
    assert str(Path.home()) not in json.dumps(report)


def test_the_store_is_timed_beside_another_checkouts():
    command = [sys.executable, "-m", "benchmarks.store_beside", ".", "--only", "many"]
    done = subprocess.run(
        [*command, "--sessions", "200", "--turns", "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"cpu of {what}, " in done.stdout for what in ("head", "sessions", "prune of 100"))


def test_all_contenders_run_the_same_model(results):
    differ = results.of("speed")["results"]["largest_logit_difference"]
    assert differ[speed.PACKAGE] == 0
    assert differ[speed.FP32] < 1e-4
    assert differ[speed.INT8] < 1


def test_a_peer_that_is_not_installed_is_left_out_and_named(results):
    found = results.of("speed")["results"]
    peers = {speed.LLAMA, speed.LLAMA_Q8, speed.RWKVSERVE}
    assert peers == peers & ({*found["missing"]} | {*found["speeds"]})
    assert all(reason.endswith("is not installed") for reason in found["missing"].values())
    named = {row["name"]: row["ratio"] for row in found["ratios"]}
    assert named[f"decode B=1 / {speed.PACKAGE}"] > 0
    if speed.LLAMA in found["missing"]:
        assert named[f"decode B=1 / {speed.LLAMA}"] is None


def test_a_crowd_answers_as_each_conversation_alone(results):
    found = results.of("crowd")["results"]
    assert not found["storm"]["wrong"]
    assert found["talks"]["answers_as_the_engine_alone"]["sessions"] == 100


@pytest.mark.slow
@pytest.mark.skipif(not redis_server.BINARY, reason="It starts a redis-server.")
def test_nothing_is_lost_where_servers_over_one_redis_are_killed(results):
    found = results.of("serve_kills")["results"]["redis"]
    assert found["killed"] == 2
    assert found["compared"] == found["acknowledged"] > 0
    assert found["problems"] == 0


@pytest.mark.slow
def test_an_agent_goes_through_its_loop_as_well_with_the_middleware_as_without(results):
    found = results.of("agent_calls")["results"]
    for sampling in SAMPLINGS:
        ours, theirs = (found[f"{sampling}, {way}"] for way in (STATE, TRANSCRIPT))
        assert ours["right"] == theirs["right"] >= 0.8 * ours["n"]
        assert found[f"{sampling}, same answers"] == ours["n"]


@pytest.mark.slow
def test_an_agents_thread_stays_as_small_as_it_was_where_a_transcript_grows(results):
    found = results.of("agent_thread")["results"]
    ours, theirs = found[STATE], found[TRANSCRIPT]
    for cost in COSTS:
        # A few turns' words are longer than others'; a thread that grows does so by a fifth here.
        assert ours["settled_growth"][cost] < 1.06 < 1.15 < theirs["settled_growth"][cost]
        assert ours["growth"][cost] < 1.25 < 3 < theirs["growth"][cost]
    assert ours["right"] == theirs["right"] >= 0.8 * len(ours["rows"])


@pytest.mark.parametrize(
    ("ran", "answer", "called", "used"),
    [
        ([("add", {"a": 1, "b": 2}, "3")], "The result is: 3", True, True),
        ([("add", {"a": 1, "b": 2}, "3")], "The result is: 4", True, False),
        ([("add", {"a": 2, "b": 1}, "3")], "The result is: 3", False, True),
        ([("multiply", {"a": 1, "b": 2}, "2")], "The result is: 2", False, True),
        ([("add", {"a": 1, "b": 2}, "3")] * 2, "The result is: 3", False, True),
        ([], "The result is: 3", False, False),
    ],
)
def test_an_agents_case_is_right_only_where_all_of_its_loop_is(ran, answer, called, used):
    calls = [
        tool_call(name=name, args=given, id=str(at)) for at, (name, given, _) in enumerate(ran)
    ]
    said = [AIMessage("", tool_calls=calls), AIMessage(answer)]
    found = judged("add", {"a": 1, "b": 2}, "What is 1 plus 2?", ran, said)
    assert (found.called, found.used, found.right) == (called, used, called and used)


def test_answers_that_are_held_fit_their_schemas(results):
    checks = {check["name"]: check for check in results.of("constraints")["checks"]}
    assert checks["finished answers that parse and fit"]["passed"]
    assert checks["answers read again for their ids"]["passed"]


def test_a_target_is_missed_below_its_ratio():
    speeds = {speed.FP32: {"B=1": 30.0}, speed.PACKAGE: {"B=1": 20.0}}
    row = speed.ratios(speeds)[0]
    assert (row["ratio"], row["target"]) == (1.5, 2)


def test_the_page_takes_its_tables_from_the_json(results):
    for name in {benchmark for benchmark, _ in tables.TABLES.values()} & {*SCRIPTS}:
        if NEEDS.get(name, (True,))[0]:
            results.of(name)
    page = tables.fill(tables.PAGE.read_text("utf-8"), results.directory)
    assert "| answers compared with those alone |" in page
    assert f"| decode B=1 / {speed.PACKAGE} |" in page
    assert "| next-token KL, nats |" in page
    assert "| ChatRWKV | 3 |" in page
    assert "| turns that went right |" in page


def test_pictures_are_drawn_from_results(results, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    small = ("speed", "crowd", "agent_thread")
    for name in small:
        results.of(name)
    drawn = plots.draw(images=tmp_path / "committed")
    drawn += plots.draw(results.directory, tmp_path / "small", only=small)
    names = {path.name for path in drawn}
    assert names >= {"recall.png", "speed.png", "waiting.png", "agent_bytes.png"}
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_pictures_of_states_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "benchmarks.state_pictures", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn >= {"heat_maps.png", "heat_difference.png", "watch.svg"}


def drawn_by_training(kind, rng):
    return Inventory(held_out=False).value(rng, kind).lower()


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_asked_for_is_one_that_training_draws(kind):
    rng = Random(0)
    trained = {drawn_by_training(kind, rng) for _ in range(20_000)}
    asked = {values.value(rng, kind).lower() for _ in range(3_000)}
    assert not asked & trained


def test_no_real_word_stands_in_a_list_of_the_training():
    lists = (words.NAMES, words.CITIES, words.PETS, words.COLOURS, words.FOODS, words.WORDS)
    listed = {word.lower() for each in lists for word in each}
    for real in WORDS.values():
        assert len(real) >= 20
        assert not {word.lower() for word in real} & listed
        assert all(map(values.never_drawn, real))


def test_no_made_up_value_can_be_made_by_the_training():
    rng = Random(1)
    for _ in range(2_000):
        for value in (values.made_up(rng), number(rng), values.letters(rng)):
            assert is_held_out(value) or value in values._HELD_OUT


@pytest.mark.parametrize("name", cases.TOOLS)
def test_no_tool_is_one_that_training_can_make(name):
    rng = Random(2)
    nouns = {*words.TOOL_NOUNS, *words.PAIR_VERBS, *words.SEEK_VERBS, *words.CORPORA}
    for _ in range(200):
        tool, asked, arguments = cases.TOOLS[name](rng)
        made_up = tool["name"].removeprefix("get_")
        # Training knows some of the words of a name that is held out, and never that name.
        assert tool["name"] in words.HELD_OUT["tool"] or (
            is_held_out(made_up) and made_up not in nouns
        )
        assert all(str(value) in asked for value in arguments.values())


def test_all_questions_have_one_length():
    tokenizer = WorldTokenizer()
    assert len({len(tokenizer.encode(question(turn))) for turn in range(len(THINGS))}) == 1


def test_a_check_knows_its_side():
    assert Check("recall", 99.0, 99, "at least").passed
    assert not Check("recall", 98.9, 99, "at least").passed
    assert Check("time", 1.1, 1.1, "at most").passed
    assert not Check("time", 1.2, 1.1, "at most").passed
