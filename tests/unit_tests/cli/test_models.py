"""The commands that ask a model: half-lives, clamped decays, and what remembering costs."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.runtime import clamp_decay, half_life, load_runtime, text_loss
from langchain_rwkv_state.state import memory
from langchain_rwkv_state.tokenizer import JsonTokenizer
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint, write_tokenizer

TEXT = "The man in the house. User: the other"


def run(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert not isinstance(found.exception, AssertionError)
    return found


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def ids_of(model):
    return JsonTokenizer(model.with_name("tokenizer.json")).encode(TEXT)


# -- half-life -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5.0, 5.1, 5.2])
def test_half_lives_of_the_weights_need_no_text(tiny_model, version):
    model = tiny_model(version)
    result = run("half-life", "--model", model)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "read off the weights" in lines[0]
    assert cells(lines[2]) == ["LAYER", "SHORTEST", "25 %", "MEDIAN", "75 %", "LONGEST"]
    layer = half_life(model).layers[1]
    assert cells(lines[4])[0] == "1"
    assert float(cells(lines[4])[1]) == pytest.approx(float(layer.min()), rel=5e-3)
    assert float(cells(lines[4])[-1]) == pytest.approx(float(layer.max()), rel=5e-3)
    assert run("half-life", "--model", model, "--words", TEXT).stdout == result.stdout


@pytest.mark.parametrize("version", [6, 7])
def test_half_lives_on_a_text_are_those_of_its_ids(tiny_model, tmp_path, version):
    model, out, text = tiny_model(version), tmp_path / "out.json", tmp_path / "text.txt"
    text.write_text(TEXT)
    assert run("half-life", "-m", model, "--text", text, "--json", out).exit_code == 0
    found, expected = json.loads(out.read_text()), half_life(model, ids_of(model))
    assert found["layers"][0]["tokens"] == expected.layers[0].tolist()
    assert found["layers"][1]["medians"] == expected.medians[1].tolist()
    assert (found["version"], found["measured"]) == (str(version), True)
    assert found["n_tokens"] == len(ids_of(model))


@pytest.mark.parametrize("version", [6, 7])
def test_a_model_that_needs_a_text_says_how_to_give_one(tiny_model, version):
    result = run("half-life", "--model", tiny_model(version))
    assert result.exit_code == 1
    assert "--text FILE or --words TEXT" in result.stderr


def test_the_demo_model_says_which_text_it_was_measured_on():
    result = run("half-life")
    assert result.exit_code == 0
    assert "53 tokens of the built-in conversation" in result.stdout


def test_what_never_fades_is_said_and_stays_json(tmp_path):
    decay = torch.full((64,), -2.0)
    decay[0] = -1000
    tensors = random_checkpoint(4, n_embd=64, head_size=32) | {"blocks.0.att.time_decay": decay}
    model = write_checkpoint(tmp_path / "m.pth", tensors=tensors)
    result = run(
        "half-life", "-m", model, "--json", tmp_path / "o.json", "--plot", tmp_path / "o.png"
    )
    assert cells(result.stdout.splitlines()[3])[-1] == "for ever"
    tokens = json.loads((tmp_path / "o.json").read_text())["layers"][0]["tokens"]
    assert tokens[0] is None
    assert tokens[1] == pytest.approx(math.log(2) / math.exp(-2))
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_never_written_over(tmp_path):
    for option, name in (("--plot", "a.png"), ("--json", "a.json")):
        taken = tmp_path / name
        taken.write_text("mine")
        result = run("half-life", option, taken)
        assert result.exit_code == 1
        assert "is there already" in result.stderr
        assert taken.read_text() == "mine"
    assert run("half-life", "--plot", tmp_path / "a.bmp").exit_code == 1


def test_a_text_is_given_once(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("")
    assert run("half-life", "--text", text, "--words", "x").exit_code == 2
    assert run("half-life", "--text", text).exit_code == 2
    assert run("half-life", "--text", tmp_path / "none.txt").exit_code == 2


# -- clamp-decay ---------------------------------------------------------------------------------


@pytest.fixture
def clampable(tmp_path):
    decay = torch.full((64,), -3.0)
    decay[[0, 5, 6, 7]] = torch.tensor([-9.0, 1.0, 2.0, 1.0])
    tensors = random_checkpoint(4, n_embd=64, head_size=32)
    tensors |= {
        "blocks.0.att.time_decay": decay,
        "blocks.1.att.time_decay": torch.full((64,), -2.0),
    }
    write_tokenizer(tmp_path / "tokenizer.json")
    return write_checkpoint(tmp_path / "m.pth", tensors=tensors)


def test_a_clamp_shows_channels_half_lives_and_losses(clampable):
    result = run("clamp-decay", "--model", clampable, "--words", TEXT)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("which are half-lives of 0.766 to 2,066 tokens.")
    assert cells(lines[3]) == ["0", "4 of 64", "0.0938 to 5,617", "0.766 to 2,066", "0, 5-7"]
    assert cells(lines[4]) == ["1", "0 of 64", "5.12 to 5.12", "5.12 to 5.12"]
    plain, clamped = load_runtime(clampable), clamp_decay(clampable)
    before, after = (text_loss(r, ids_of(clampable)) for r in (plain, clamped))
    plain.close()
    clamped.close()
    assert before != after
    assert f"{before:.4f} nats a token before, {after:.4f} after" in lines[-1]


def test_a_clamp_that_changes_nothing_says_so(clampable):
    result = run("clamp-decay", "-m", clampable, "--low", "-10", "--high", "3", "--words", TEXT)
    assert result.stdout.splitlines()[-1].endswith("nothing changes.")


def test_a_clamped_model_goes_to_a_new_file(clampable, tmp_path):
    out = tmp_path / "new.safetensors"
    result = run("clamp-decay", "-m", clampable, "--out", out)
    assert result.exit_code == 0
    assert "to see what it does to a text's loss" in result.stderr
    assert float(half_life(out).layers[0].min()) == pytest.approx(math.log(2) / math.exp(-0.1))
    data = out.read_bytes()
    again = run("clamp-decay", "-m", clampable, "--low", "-1", "--out", out)
    assert again.exit_code == 1
    assert "is there already" in again.stderr
    assert out.read_bytes() == data
    assert run("clamp-decay", "-m", clampable, "--out", tmp_path / "new.pth").exit_code == 2


@pytest.mark.parametrize("version", [6, 7])
def test_a_clamp_is_refused_where_the_text_decides(tiny_model, version):
    result = run("clamp-decay", "-m", tiny_model(version))
    assert result.exit_code == 1
    assert f"An RWKV-{version} has no decay that could be clamped" in result.stderr


def test_bounds_in_the_wrong_order_are_refused(clampable):
    result = run("clamp-decay", "-m", clampable, "--low", "0", "--high", "-1")
    assert result.exit_code == 1
    assert "lower one first" in result.stderr


def test_a_clamp_asks_for_a_model():
    assert run("clamp-decay").exit_code == 2


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5.0, 5.2, 6, 7])
def test_memory_is_that_of_the_runtimes_states(tiny_model, version):
    model = tiny_model(version)
    runtime = load_runtime(model, "cpu fp32")
    nbytes, expected = runtime.layout.nbytes, memory(runtime, 8192)
    runtime.close()
    result = run("memory", "--model", model, "--context", 8192)
    lines = result.stdout.splitlines()
    assert f"a state is {nbytes:,} bytes" in lines[0]
    assert cells(lines[3])[:3] == [
        "8,192",
        f"{expected.cache / 1e6:.1f} MB",
        f"{expected.cache / nbytes:,.0f}",
    ]


def test_memory_shows_four_lengths_unless_asked_for_others():
    lengths = [cells(line)[0] for line in run("memory").stdout.splitlines()[3:]]
    assert lengths == ["1,024", "8,192", "131,072", "1,048,576"]
    lines = run("memory", "-c", 5, "-c", 0, "--group", 8, "--bytes", 1).stdout.splitlines()
    assert [cells(line)[0] for line in lines[3:]] == ["5", "0"]
    assert cells(lines[2])[3] == "GROUPS OF 8"
    assert cells(lines[3])[1:] == ["7.7 kB", "0.0379", "960 B", "0.00473"]
    assert run("memory", "-c", -1).exit_code == 2


@pytest.mark.parametrize("command", ["half-life", "clamp-decay", "memory"])
def test_every_command_has_help_and_says_what_is_not_there(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--model" in result.stdout
    missing = run(command, "--model", "nowhere.pth")
    assert missing.exit_code == 1
    assert "no file nowhere.pth" in missing.stderr
