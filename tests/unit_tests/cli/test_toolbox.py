"""The commands that work on states: on sessions and on files, and never over what is there."""

from __future__ import annotations

import math
import time

import pytest
import torch
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.state import (
    CODECS,
    RWKVState,
    StateLayout,
    blend,
    blend_many,
    decay,
    distance,
    export_tensors,
    lossy,
)
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import head_of, random_state

LAYOUT = StateLayout.of(7, n_layer=2, n_embd=64, head_size=32)
ALICE, BOB = (random_state([n], layout=LAYOUT) for n in (1, 2))


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        for name, state in (("alice", ALICE), ("bob", BOB)):
            opened.commit(name, opened.stage(state), None)
        yield opened


@pytest.fixture
def run(store):
    def call(*words):
        found = CliRunner().invoke(app, [*words, "--store", str(store.path)])
        assert not isinstance(found.exception, AssertionError)
        return found

    return call


def test_inspect_shows_each_tensor_and_a_verdict(run):
    result = run("inspect", "alice")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].startswith("RWKVState(RWKV-7 2x64")
    assert sum(line.startswith("blocks.") for line in lines) == 6
    assert lines[-1].startswith("Finite")


def test_inspect_of_a_broken_file_ends_with_1(run, tmp_path):
    tensors = {name: ALICE[name] for name in ALICE}
    tensors["blocks.1.att_kv"][0, 0, 0] = math.nan
    RWKVState(LAYOUT, tensors, ALICE.derivation).save(tmp_path / "broken.safetensors")
    result = run("inspect", str(tmp_path / "broken.safetensors"))
    assert result.exit_code == 1
    assert "Broken: blocks.1.att_kv holds 1 NaN" in result.stdout


@pytest.mark.parametrize("metric", ["l2", "cosine", "rms_relative"])
def test_diff_is_a_table_of_layers(run, metric):
    result = run("diff", "alice", "bob", "--metric", metric)
    found = distance(ALICE, BOB, metric)
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["LAYER", "WHOLE", "att_x_prev", "att_kv", "ffn_x_prev"]
    assert rows[1][:2] == ["0", f"{found.layers[0]:.4g}"]
    assert rows[3] == ["all", f"{found.total:.4g}"]


def test_diff_by_another_metric_is_refused(run):
    assert run("diff", "alice", "bob", "--metric", "l1").exit_code == 2


def test_blend_and_decay_make_new_sessions(run, store):
    result = run("blend", "alice", "bob", "--alpha", "0.7", "--into", "both")
    assert result.stdout == "The session both begins with 1 token in 17.4 kB.\n"
    assert head_of(store, "both") == blend(ALICE, BOB, 0.7)
    assert run("decay", "both", "0.5", "--into", "faded").exit_code == 0
    assert head_of(store, "faded") == decay(blend(ALICE, BOB, 0.7), 0.5)
    assert head_of(store, "alice") == ALICE


def test_many_states_are_blended_with_weights_and_by_parts(run, store):
    words = ["blend", "alice", "bob", "alice", "--weights", "0.5,0.3,0.2", "--into", "all"]
    assert run(*words).exit_code == 0
    assert head_of(store, "all") == blend_many([ALICE, BOB, ALICE], [0.5, 0.3, 0.2])
    assert (
        run("blend", "alice", "bob", "--part", "0", "--part", "att_kv", "--into", "x").exit_code
        == 0
    )
    assert head_of(store, "x") == blend(ALICE, BOB, 0.5, parts=[0, "att_kv"])
    assert run("decay", "alice", "0.5", "--part", "1", "--into", "y").exit_code == 0
    assert head_of(store, "y") == decay(ALICE, 0.5, parts=[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alice"], "two states or more"),
        (["alice", "bob", "alice"], "--weights for 3 states"),
        (["alice", "bob", "--weights", "1,x"], "no numbers"),
        (["alice", "bob", "--weights", "0.5,0.6"], "add up to 1"),
        (["alice", "bob", "--weights", "0.5,0.5", "--alpha", "0.5"], "not both"),
        (["alice", "bob", "--part", "7"], "7 is no part"),
    ],
)
def test_weights_and_parts_that_make_no_sense_are_refused(run, store, words, said):
    result = run("blend", *words, "--into", "new")
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
    assert store.head("new") is None


def test_codecs_are_tried_on_a_state_without_storing_anything(run, store):
    before = store.stats()
    rows = [line.split() for line in run("codecs", "alice").stdout.splitlines()]
    assert [row[0] for row in rows] == ["CODEC", *CODECS]
    assert [float(row[2]) for row in rows[1:]] == sorted(
        (float(r[2]) for r in rows[1:]), reverse=True
    )
    assert store.stats() == before
    result = run("codecs", "alice", "--model", "demo")
    assert result.exit_code == 1
    assert "another model" in result.stderr


def test_nothing_that_is_there_is_written_over(run, store, tmp_path):
    for words in (
        ("blend", "alice", "bob", "--into", "bob"),
        ("decay", "alice", "0.5", "--into", "bob"),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert "bob" in result.stderr
    assert head_of(store, "bob") == BOB
    file = tmp_path / "a.safetensors"
    assert run("export", "alice", str(file)).exit_code == 0
    before = file.read_bytes()
    for onto in (("export", "bob", str(file)), ("decay", "bob", "0.5", "--into", str(file))):
        result = run(*onto)
        assert result.exit_code == 1
        assert "is there already" in result.stderr
    assert file.read_bytes() == before


def test_a_state_goes_to_a_file_and_to_another_store(run, store, tmp_path):
    file = tmp_path / "alice.safetensors"
    assert run("export", "alice", str(file)).stdout.startswith(f"Wrote {file}, ")
    assert RWKVState.load(file) == ALICE
    there = tmp_path / "there"
    words = ["import", str(file), "guest", "--store", str(there)]
    assert CliRunner().invoke(app, words).exit_code == 0
    with DiskStateStore(there) as other:
        assert head_of(other, "guest") == ALICE
    assert run("diff", str(file), "alice").stdout.splitlines()[-1].split() == ["all", "0"]


def test_export_keeps_to_a_codec(run, tmp_path):
    assert run("export", "alice", str(tmp_path / "a.safetensors"), "--codec", "int8").exit_code == 0
    assert RWKVState.load(tmp_path / "a.safetensors") == lossy(ALICE, "int8")
    result = run("export", "alice", str(tmp_path / "b.safetensors"), "--codec", "int2")
    assert result.exit_code == 1
    assert "'int2'" in result.stderr
    assert run("export", "alice", str(tmp_path / "b.pt"), "--codec", "int8").exit_code == 2
    assert not (tmp_path / "b.pt").exists()


def test_a_changed_file_is_refused(run, tmp_path):
    file = tmp_path / "a.safetensors"
    run("export", "alice", str(file))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for words in (("inspect", str(file)), ("import", str(file), "new")):
        result = run(*words)
        assert result.exit_code == 1
        assert "checksum" in result.stderr


def test_a_plain_list_goes_out_and_comes_in(run, store, tmp_path, tiny_model):
    run("export", "alice", str(tmp_path / "a.pt"))
    plain = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(map(torch.equal, plain, (ALICE[name] for name in ALICE)))
    model = str(tiny_model(7))
    result = run("import", str(tmp_path / "a.pt"), "guest", "--model", model)
    assert result.exit_code == 0, result.stderr
    guest = head_of(store, "guest")
    assert all(torch.equal(guest[name], ALICE[name]) for name in ALICE)
    export_tensors(ALICE, tmp_path / "b.safetensors")
    assert run("import", str(tmp_path / "b.safetensors"), "second", "-m", model).exit_code == 0


def test_a_session_goes_to_a_bundle_and_to_another_store(run, store, tmp_path):
    file, there = tmp_path / "alice.zip", str(tmp_path / "there")
    head = store.head("alice")
    store.commit("alice", store.stage(ALICE.advanced(dict(ALICE), [5]), parent=head), head)
    assert run("export", "alice", str(file)).stdout.startswith(f"Wrote {file}, ")
    for words, name in (([str(file)], "alice"), ([str(file), "guest", "--ttl", "2h"], "guest")):
        result = CliRunner().invoke(app, ["import", *words, "--store", there])
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"The session {name} has 2 turns, 2 tokens in 36.5 kB.\n"
    with DiskStateStore(there) as other:
        for name in ("alice", "guest"):
            assert head_of(other, name) == head_of(store, "alice")
            assert len(other.log(name)) == 2
        guest = other.session("guest", renew=False)
        assert guest is not None
        assert guest.expires_seconds - time.time() == pytest.approx(7200, abs=60)
        before = other.stats()
        result = CliRunner().invoke(app, ["import", str(file), "--store", there])
        assert result.exit_code == 1
        assert "'alice' exists" in result.stderr
        assert other.stats() == before


def test_a_changed_bundle_is_refused_and_one_that_is_there_not_written_over(run, tmp_path):
    file = tmp_path / "alice.zip"
    run("export", "alice", str(file))
    result = run("export", "bob", str(file))
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    data = bytearray(file.read_bytes())
    data[99] ^= 1
    file.write_bytes(data)
    result = run("import", str(file), "new")
    assert result.exit_code == 1
    assert "digest is wrong" in result.stderr


def test_token_ids_are_asked_for_by_name(run, store, tmp_path):
    with DiskStateStore(store.path, log="tokens") as keeping:
        keeping.commit("cy", keeping.stage(ALICE, tokens=[1]), None)
    assert run("export", "cy", str(tmp_path / "a.zip")).exit_code == 0
    assert run("export", "cy", str(tmp_path / "b.zip"), "--tokens").exit_code == 0
    assert [b'"tokens"' in (tmp_path / name).read_bytes() for name in ("a.zip", "b.zip")] == [
        False,
        True,
    ]
    result = run("export", "alice", str(tmp_path / "c.zip"), "--tokens")
    assert result.exit_code == 1
    assert "No token ids" in result.stderr


def test_what_is_for_bundles_alone_is_refused_elsewhere(run, store, tmp_path):
    state, bundle = str(tmp_path / "a.safetensors"), str(tmp_path / "a.zip")
    assert run("export", "alice", state, "--tokens").exit_code == 2
    assert run("export", "alice", bundle, "--codec", "int8").exit_code == 2
    assert not list(tmp_path.glob("a.*"))
    run("export", "alice", state)
    result = run("import", state)
    assert result.exit_code == 2
    assert "Name the session" in result.stderr
    assert run("import", state, "new", "--ttl", "1h").exit_code == 2
    missing = tmp_path / "nowhere"
    words = ["import", bundle, "--store", str(missing)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "There is no file" in result.stderr
    assert not missing.exists()


def test_what_is_not_there_is_said(run, tmp_path):
    for words in (
        ("inspect", "nobody"),
        ("diff", "alice", "nobody"),
        ("export", "nobody", str(tmp_path / "x.pt")),
        ("export", "nobody", str(tmp_path / "x.zip")),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert "no session 'nobody'" in result.stderr
    assert run("import", str(tmp_path / "none.pt"), "x").exit_code == 1


@pytest.mark.parametrize(
    "command", ["inspect", "diff", "blend", "decay", "codecs", "export", "import"]
)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--store" in result.stdout


def test_a_name_that_is_taken_is_said_so(run):
    for words in (
        ("blend", "alice", "bob", "--into", "bob"),
        ("decay", "alice", "0.5", "--into", "bob"),
        ("zero", "--into", "bob"),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert "The session 'bob' exists already" in result.stderr


def test_a_session_may_have_a_name_longer_than_a_path(run, store):
    name = "x" * 300
    store.commit(name, store.stage(ALICE), None)
    assert run("inspect", name).exit_code == 0
    assert run("blend", name, "bob", "--into", "both").exit_code == 0


def test_a_zero_state_is_a_file_or_a_session(run, store, tmp_path):
    assert run("zero", "--into", "nothing").exit_code == 0
    assert head_of(store, "nothing").n_tokens == 0
    file = tmp_path / "zero.safetensors"
    assert run("zero", "--into", str(file)).exit_code == 0
    assert RWKVState.load(file) == head_of(store, "nothing")
    assert "Empty" in run("inspect", str(file)).stdout


def test_renormalise_says_why_nothing_was_to_be_changed(run, store):
    result = run("renormalise", "alice", "--into", "even")
    assert result.exit_code == 0
    assert "no scale beside its matrices" in " ".join(result.stderr.split())
    assert head_of(store, "even") == ALICE


def test_four_tensors_of_rwkv_4_come_in_with_a_log_scale(run, store, tmp_path, tiny_model):
    model = str(tiny_model(4))
    run("zero", "--into", str(tmp_path / "zero.pt.safetensors"), "--model", model)
    zero = RWKVState.load(tmp_path / "zero.pt.safetensors")
    four = [1 + zero[name] for name in zero if not name.endswith("att_pp")]
    torch.save(four, tmp_path / "four.pt")
    words = ["import", str(tmp_path / "four.pt"), "guest", "--model", model]
    assert "log_scale" in run(*words).stderr
    assert run(*words, "--log-scale", "0").exit_code == 0
    assert torch.equal(head_of(store, "guest")["blocks.0.att_pp"], torch.zeros(64))


def test_files_that_are_not_there_or_no_text_are_named(run, tmp_path):
    result = run("import", str(tmp_path / "none.pt"), "x", "--model", str(tmp_path / "no.pth"))
    assert "none.pt" in result.stderr
    (tmp_path / "binary").write_bytes(b"\xd0\xff\x00")
    for words in (
        ("inspect", "alice", "--healthy", str(tmp_path / "binary")),
        ("prefill", "new", "--file", str(tmp_path / "binary")),
        ("report", "alice", str(tmp_path / "a.html"), "--recall", str(tmp_path / "binary")),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert "binary is no text in UTF-8" in " ".join(result.stderr.split())


def test_looking_makes_no_store_in_a_directory_that_is_there(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for words in (("inspect", "bob"), ("watch", "bob", "--once"), ("sessions",)):
        CliRunner().invoke(app, [*words, "--store", str(folder)])
        assert list(folder.iterdir()) == []


def test_a_session_of_a_very_long_life_can_be_shown(run, tmp_path):
    assert run("prefill", "old", "--words", "hello", "--ttl", "9999999d").exit_code == 0
    shown = run("show", "old")
    assert shown.exit_code == 0
    assert "after the year 9999" in shown.stdout
    assert run("report", "old", str(tmp_path / "old.html")).exit_code == 0
    result = run("prefill", "older", "--words", "hello", "--ttl", "99999999999d")
    assert result.exit_code == 1
    assert "30,000 years" in result.stderr
