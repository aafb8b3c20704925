"""What `make gpu` does is right before anybody has a card: each part runs, on the CPU, in small."""

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import psutil
import pytest
import torch

from benchmarks import common, tables
from benchmarks.cuda import __main__ as command
from benchmarks.cuda import chat, choosing, correctness, estimate, pages, parts, speed
from benchmarks.cuda.bench import Bench
from benchmarks.cuda.ours import Decoding
from benchmarks.cuda.shapes import SHAPES, TINY, Shape, tensors_of
from benchmarks.cuda.stand_in import stand_in
from benchmarks.cuda.what_runs import Fallback, what_runs
from benchmarks.speed import Contender
from langchain_rwkv_state.engine.sampler import Sampler
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.slots import StateSlots

STAND_IN = """
import torch

MODEL_PATH = WKV_MODE = EMB_DEVICE = None
V = 0


def load_extensions(mode):
    assert mode == WKV_MODE in ("fp16", "fp32io16")


class RWKV7:
    def __init__(self):
        global V
        self.emb = torch.load(MODEL_PATH, mmap=True)["emb.weight"]
        V = len(self.emb)

    def zero_state(self, rows):
        return [torch.zeros(rows)]

    def forward(self, tokens, state):
        assert len(tokens) == len(state[0])
        state[0] += 1
        return self.emb[tokens[:, -1]] @ self.emb[:64].t()
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(autouse=True)
def _card(monkeypatch):
    """The same stand-in for a card as in a dry run."""
    stand_in(monkeypatch)


@pytest.fixture
def bench(directory):
    def make(name, **settings):
        return Bench(name, directory, device="cpu", **settings)

    return make


# -- the command -------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_and_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cuda"])
    assert command.main() == 1
    said = capsys.readouterr().err
    assert "needs a CUDA card" in said
    assert "--dry-run" in said


def test_the_parts_fit_into_20_minutes_and_3():
    assert sum(part.seconds for part in parts.PARTS.values()) <= parts.FULL_SECONDS == 1200
    assert sum(part.quick for part in parts.PARTS.values()) <= parts.QUICK_SECONDS == 180


@pytest.mark.slow
def test_the_command_runs_a_part_and_keeps_what_it_found(tmp_path, monkeypatch, capfd):
    options = ["--dry-run", "--only", "what runs", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cuda", *options])
    assert command.main() == 0
    report = json.loads((tmp_path / "cuda.json").read_text("utf-8"))
    assert report["results"]["what runs"]["about"] in capfd.readouterr().out
    assert report["results"]["what runs"]["machine"]["torch"] == torch.__version__
    assert report["results"]["cut"] == report["results"]["failed"] == []


class Runs(command.Run):
    """Runs parts of this test in place of `make gpu`'s."""

    def __init__(self, directory, **settings):
        parser = common.parser("")
        arguments = parser.parse_args([])
        given = {"dry_run": True, "only": None, "albatross": None, **settings}
        vars(arguments).update(given)
        super().__init__(arguments, directory)


def test_a_part_that_hangs_is_ended_with_what_it_started_and_named(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; wait"
    monkeypatch.setattr(command, "sys", type("Sys", (), {"executable": _hanging(tmp_path, script)}))
    runs, start = Runs(tmp_path), time.monotonic()
    assert runs._one("speed 0.1B", 3)
    assert time.monotonic() - start < 30
    assert runs.cut == ["speed 0.1B: its 3 s were over"]
    assert not runs.failed
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE


def _hanging(directory, script):
    """Returns a program that takes a part's place."""
    if os.name == "nt":
        pytest.skip("a script is no program on Windows")
    program = directory / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_parts_for_which_no_time_is_left_are_named(tmp_path):
    runs = Runs(tmp_path, dry_run=False)
    runs._until = time.monotonic() + 1
    runs.all_of_them()
    assert runs.cut == [f"{name}: no time was left" for name in parts.PARTS]
    failed = [each.partition(":")[0] for each in runs.failed]  # nobody knows whether they pass
    assert failed == [name for name in parts.PARTS if not name.startswith(("speed", "chat"))]


def test_a_dry_run_does_each_kind_of_part_once(tmp_path, monkeypatch):
    ran = []

    def one(self, name, seconds):
        ran.append(name)
        return True

    monkeypatch.setattr(Runs, "_one", one)
    Runs(tmp_path).all_of_them()
    kinds = ["correct 0.1B", "speed 0.1B", "chat 0.1B", "two cards", "pytest -m cuda"]
    assert ran == ["what runs", "choosing", *kinds]
    ran.clear()
    Runs(tmp_path, only=["speed 7.2B"]).all_of_them()
    assert ran == ["speed 7.2B"]


def test_a_build_that_was_ended_keeps_no_later_one_waiting(tmp_path):
    for name in ("lock", "kernels.so"):
        (tmp_path / "kernels").mkdir(exist_ok=True)
        (tmp_path / "kernels" / name).touch()
    command.free_builds(tmp_path)
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["kernels.so"]
    command.free_builds(tmp_path / "there is none")


@pytest.mark.slow
def test_peers_are_started_once_to_be_built(bench, tmp_path, capsys):
    stand_in = tmp_path / "faster9_2607" / "rwkv7_fast_v9.py"
    stand_in.parent.mkdir()
    stand_in.write_text("ROWS_CUTLASS_AVAILABLE = False\n" + STAND_IN)
    speed.build_peers(bench("peers", albatross=str(tmp_path)))
    said = capsys.readouterr().out
    assert said.count("it runs: Albatross faster9_2607 without CUTLASS") == 2
    assert "it runs: `rwkv` package" in said


def test_a_fallback_ends_it_all(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(Runs, "_one", lambda self, name, seconds: ran.append(name))
    Runs(tmp_path).all_of_them()
    assert ran == ["what runs"]


def test_a_difference_beyond_its_limit_fails_and_a_slow_cell_does_not(tmp_path):
    check = {"measured": 1.0, "target": 0.5, "bound": "at most", "unit": "", "n": 1}
    found = {
        "correct 0.1B": {"results": {}, "checks": [{"name": "wrong", **check}], "cut": []},
        "chat 0.1B": {"results": {}, "checks": [{"name": "slow", **check}], "cut": []},
    }
    runs = Runs(tmp_path)
    runs.found = found
    report = runs.report()
    assert [each.split(":")[0] for each in runs.failed] == ["correct 0.1B"]
    assert [check.passed for check in report.checks] == [False, False]


# -- what runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fallbacks", "said"),
    [(("no Triton",), "fell back: no Triton"), (None, "does not say what it fell back to")],
)
def test_a_fallback_is_never_silent(bench, monkeypatch, fallbacks, said):
    made = bench("what runs")
    path = made.model("0.1B")
    monkeypatch.setattr(Bench, "dry", False)
    monkeypatch.setattr(Bench, "model", lambda self, name: path)
    monkeypatch.setattr(Bench, "strategy", lambda self: "native cpu fp32")
    monkeypatch.setattr(RuntimeHandle, "fallbacks", fallbacks, raising=False)
    with pytest.raises(Fallback, match=said):
        what_runs(made)


def test_where_nothing_fell_back_it_goes_on(bench, monkeypatch):
    made = bench("what runs")
    path = made.model("0.1B")
    monkeypatch.setattr(Bench, "dry", False)
    monkeypatch.setattr(Bench, "model", lambda self, name: path)
    monkeypatch.setattr(Bench, "strategy", lambda self: "native cpu fp32")
    monkeypatch.setattr(RuntimeHandle, "fallbacks", (), raising=False)
    what_runs(made)
    assert made.results["fallbacks"] == []


# -- models ------------------------------------------------------------------------------------


def test_shapes_have_the_ranks_of_released_models():
    assert SHAPES["1.5B"].ranks == {"w": 96, "a": 96, "v": 64, "g": 256}
    assert SHAPES["7.2B"].ranks == {"w": 128, "a": 128, "v": 96, "g": 480}
    assert [round(shape.nbytes / 2e9, 1) for shape in SHAPES.values()] == [0.2, 1.5, 2.9, 7.2]


def test_layers_share_their_numbers_in_the_file_and_nothing_else(bench, tmp_path):
    shape = Shape("six", 6, 128, vocab=300)
    tensors = tensors_of(shape)
    torch.save(tensors, tmp_path / "model.pth")
    once = tensors_of(Shape("one", 1, 128, vocab=300))
    torch.save(once, tmp_path / "one.pth")
    assert (tmp_path / "model.pth").stat().st_size < 1.2 * (tmp_path / "one.pth").stat().st_size
    runtime = load_runtime(tmp_path / "model.pth", "native cpu fp32")
    assert runtime.layout.specs[0].shape[0] == 6 or len(runtime.zero_state()) >= 6
    logits, _ = runtime.forward([1, 2, 3], runtime.zero_state())
    assert logits.isfinite().all()
    runtime.close()


def test_nine_in_ten_activations_of_a_channel_mix_are_zero():
    tensors = tensors_of(Shape("wide", 1, 512, vocab=300))
    norm = [tensors[f"blocks.0.ln2.{name}"].float() for name in ("weight", "bias")]
    x = torch.nn.functional.layer_norm(torch.randn(64, 512), (512,), norm[0], norm[1])
    share = tensors["blocks.0.ffn.x_k"].float().flatten()
    mixed = x + (x.roll(1, 0) - x) * share
    inner = mixed @ tensors["blocks.0.ffn.key.weight"].float().t()
    assert 0.85 < float((inner <= 0).float().mean()) < 0.95


# -- the parts ---------------------------------------------------------------------------------


def test_differences_are_found(bench, monkeypatch):
    made = bench("correct 0.1B")
    correctness.check(made, "0.1B")
    assert len(made.checks) == len(correctness.LIMITS)
    assert all(check.passed for check in made.checks)
    monkeypatch.setattr(correctness, "apart", lambda ours, expected: 1.0)
    monkeypatch.setattr(correctness, "LIMITS", {"fp32": 1e-4})
    wrong = bench("correct 0.1B")
    correctness.check(wrong, "0.1B")
    assert not any(check.passed for check in wrong.checks)


def test_a_difference_is_relative_to_what_was_expected():
    found = torch.randn(3, 100)
    assert correctness.apart(found, found) == 0
    assert correctness.apart(1.01 * found, found) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("wrong", [0, 1])
def test_choices_are_set_beside_the_cpus(bench, monkeypatch, wrong):
    class Off(Sampler):
        def choose(self, row, allowed=None):
            return super().choose(row, allowed) + wrong

    monkeypatch.setattr(choosing, "Sampler", Off)
    made = bench("choosing")
    choosing.choosing(made)
    (check,) = made.checks
    assert check.measured == wrong * check.n * len(choosing.SETTINGS)
    assert check.passed is not bool(wrong)
    assert made.cut == ["waits and requests of a recorded step: there is no card"]


def test_a_card_that_leaves_choosing_to_the_host_is_an_error(bench, monkeypatch):
    monkeypatch.setattr(choosing, "open_slots", StateSlots)
    with pytest.raises(Fallback, match="leaves choosing to the host"):
        choosing.choosing(bench("choosing"))


@pytest.mark.parametrize(("fails", "waits"), [(None, 0), ("called a synchronizing operation", 1)])
def test_a_recorded_step_is_watched_for_waits_and_requests(bench, monkeypatch, fails, waits):
    said: list[str] = []
    asked = iter([5, 7])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", said.append)
    stats = lambda: {"allocation.all.allocated": next(asked)}  # noqa: E731
    monkeypatch.setattr(torch.cuda, "memory_stats", stats)

    class Steps(Decoding):
        def __init__(self):
            pass

        def launch(self):
            if fails:
                raise RuntimeError(fails)

        def taken(self, step):
            pass

    made = bench("choosing")
    choosing._watch(made, Steps())
    assert said == ["error", "default"]
    assert [check.measured for check in made.checks] == [waits, 2]


@pytest.mark.slow
def test_peers_take_turns_with_ours_and_those_that_lack_are_named(bench, tmp_path):
    stand_in = tmp_path / "faster9_2607" / "rwkv7_fast_v9.py"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    made = bench("speed 1.5B", albatross=str(tmp_path), quick=True, seconds=300)
    speed.measure(made, "1.5B")
    names = {cell.name for cell in speed.cells(made)}
    assert set(made.results["alone"]["fp32"]) == names == {"B=1", "B=2", "prefill 8"}
    beside = made.results["beside"]
    package = f"{speed.PACKAGE} {importlib.metadata.version('rwkv')}, fp32"
    assert set(beside) >= {f"{speed.ALBATROSS} faster9_2607, fp32", package}
    assert all(set(each) == names for each in beside.values())
    assert all(
        pair["ours"] > 0 < pair["peer"] for each in beside.values() for pair in each.values()
    )
    fla = any(which.startswith("fla ") for which in beside)
    assert fla or made.cut == ["1.5B, states in fp32, fla: fla is not installed"]


def test_peers_are_set_beside_ours_with_states_like_theirs(bench):
    made = bench("speed 1.5B", albatross="there")
    found = {states: list(speed.peers(made, "model", states)) for states in ("fp32", "fp16")}
    assert [peer.name for peer in found["fp32"]] == [speed.ALBATROSS, speed.PACKAGE, speed.FLA]
    assert [peer.name for peer in found["fp16"]] == [speed.ALBATROSS]
    assert all(found[states][0].command[-1] == states for states in found)


class Small(Contender):
    """A contender on a card with room for so many."""

    def __init__(self, room, said="CUDA out of memory"):
        self.room, self.said, self.one_by_one = room, said, False

    def seconds(self, cell, *, times=None):
        if cell.n > self.room:
            raise RuntimeError(self.said)
        return 0.5


def test_a_cell_that_does_not_fit_is_left_out_and_the_others_are_not(bench):
    made = bench("speed 1.5B")
    made.results["beside"] = {}
    speeds: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    with pytest.raises(speed.Ended, match="illegal"):
        speed._alone(made, "7.2B", {}, Small(0, "an illegal memory access"))
    made.results["alone"] = {"fp32": speeds}
    speed._alone(made, "7.2B", speeds, Small(1))
    assert speeds == {"B=1": 4.0}
    assert made.cut == [f"7.2B, {cell}: CUDA out of memory" for cell in ("B=2", "prefill 8")]
    speed._beside(made, "7.2B, fla", found, {"ours": Small(8), "peer": Small(1)})
    assert found == {"B=1": {"ours": 4.0, "peer": 4.0}}


def test_without_a_checkout_albatross_is_left_out_by_name(bench):
    made = bench("speed 1.5B")
    assert list(speed.peers(made, "model", "fp16")) == []
    assert made.cut == ["Albatross: no checkout was named (--albatross PATH)"]


def test_no_cell_is_begun_with_little_time_left(bench):
    made = bench("speed 1.5B", seconds=0)
    assert list(made.within_time(["one", "two"])) == []
    assert made.cut == ["one: no time was left", "two: no time was left"]


def test_the_engine_and_chat_are_set_beside_the_runtime_alone(bench):
    made = bench("chat 0.1B")
    chat.measure(made, "0.1B")
    found = made.results["tokens a second"]
    assert set(found) == {"B=1", "B=2"}
    assert all(set(each) == set(chat.WAYS) and min(each.values()) > 0 for each in found.values())


def test_states_that_would_fill_the_disk_are_not_kept(bench, monkeypatch):
    monkeypatch.setattr(chat, "MOST_STORED_BYTES", 0)
    made = bench("chat 1.5B")
    chat.measure(made, "1.5B")
    assert len(made.cut) == 2
    assert all("would take" in each for each in made.cut)


# -- the page ----------------------------------------------------------------------------------


def test_the_page_takes_what_was_found(tmp_path):
    ran = {"machine": {"cards": ["H100, 80 GiB, sm_90"], "torch": "2.13"}, "about": "the runtime"}
    speeds = dict(zip(chat.WAYS, (1000.0, 950.0, 900.0), strict=True))
    numbers = {"prompts / plain pass": 1e-5}
    results = {
        "what runs": ran,
        "correct 7.2B": {"fp16": numbers},
        "speed 7.2B": {
            "alone": {"fp32": {"B=1": 140.0}},
            "beside": {"fla, fp32": {"B=1": {"ours": 3.0, "peer": 2.0}}},
        },
        "chat 7.2B": {"tokens a second": {"B=64": speeds}},
        "cut": ["two cards: this machine has fewer"],
        "failed": [],
    }
    report = {"date": "2026-12-01", "results": results, "checks": []}
    (tmp_path / "cuda.json").write_text(json.dumps(report), "utf-8")
    page = tables.fill(tables.PAGE.read_text("utf-8"), tmp_path)
    for row in (
        "| cards | H100, 80 GiB, sm_90 |",
        "| left out | two cards: this machine has fewer |",
        "| 7.2B, fp16 | 1e-05 |",
        "| 7.2B, states in fp32 | 140 |",
        "| 7.2B | fla, fp32 | 2 (1.50) |",
        "| 7.2B | 64 | 1,000 | 950 | 900 |",
    ):
        assert row in page


# -- the arithmetic ----------------------------------------------------------------------------


def estimated(name, card, rows, **settings):
    given = {"state_bytes": 4, "host_ms": estimate.HOST_MS[rows], **settings}
    return estimate.estimate(SHAPES[name], estimate.CARDS[card], rows, **given)


def test_weights_and_states_are_read_once_a_step():
    found = estimated("7.2B", "5090", 64)
    layers = 32 * SHAPES["7.2B"].layer_numbers * 2 / 1.5e12 * 1000
    assert layers < found.parts["products"] < 1.05 * layers
    states = 2 * 4 * 64 * SHAPES["7.2B"].state_numbers / 1.5e12 * 1000
    assert states < found.parts["time-mix"] < 1.1 * states
    assert (
        estimated("7.2B", "5090", 64, state_bytes=2).parts["time-mix"]
        < 0.6 * found.parts["time-mix"]
    )


def test_the_longer_of_card_and_host_decides():
    found = estimated("1.5B", "H100", 64, host_ms=0)
    assert estimated("1.5B", "H100", 64, host_ms=found.card_ms / 2).step_ms == found.step_ms
    slow = estimated("1.5B", "H100", 64, host_ms=2 * found.card_ms)
    assert slow.step_ms == pytest.approx(2 * found.card_ms + estimate.START_US / 1000)


def test_the_goal_is_within_reach_where_albatross_published():
    for (name, card, rows), published in estimate.ALBATROSS.items():
        assert estimated(name, card, rows).tokens_a_second > estimate.GOAL * published


def test_a_run_of_which_little_came_has_its_tables_too():
    some, all_of_them = {"fp16": {"a": 0.5}}, {"fp16": {"a": 0.5, "b": 0.25}}
    results: dict[str, Any] = {"cut": [], "failed": ["what runs: it ended with code 1"]}
    assert "it ended with code 1" in pages.machine({"date": "today", "results": results})
    results |= {"correct 0.1B": some, "correct 1.5B": all_of_them}
    assert "0.1B, fp16 | 5e-01 |  |" in pages.correct({"results": results})


def test_the_page_shows_the_arithmetic_as_it_is():
    assert estimate.page() in tables.PAGE.read_text("utf-8")


def test_the_hosts_time_can_be_given():
    assert estimate.parsed(["64=2.5"])[64] == 2.5
    with pytest.raises(SystemExit, match="not '64'"):
        estimate.parsed(["64"])
    head, rows = estimate.table([("1.5B", "H100")], {1: 0.3})
    assert [len(row) for row in rows] == [len(head)] * 2


def test_the_tiny_shape_stands_in_for_all(bench):
    assert bench("speed 7.2B").shape("7.2B") == TINY
