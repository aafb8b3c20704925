"""``--json``: each command prints what its schema says, alone on standard output."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import jsonschema
import pytest
import torch
from langchain_core.messages import HumanMessage
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app, output
from langchain_rwkv_state.cli.json_schemas import SCHEMAS
from langchain_rwkv_state.prompt.markers import message_to_json
from langchain_rwkv_state.runtime import locate
from langchain_rwkv_state.runtime.checkpoint import read_tensors
from langchain_rwkv_state.state import StateLayout
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state

LAYOUT = StateLayout.of(7, n_layer=2, n_embd=64, head_size=32)
PAGE = Path(__file__).parents[3] / "docs" / "json.md"


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        for name, numbers in (("alice", [1]), ("bob", [2]), ("bob", [2, 3])):
            ref = opened.stage(random_state(numbers, layout=LAYOUT))
            opened.commit(name, ref, opened.head(name))
        opened.append_unread("\ud800 [red]", [message_to_json(HumanMessage("Hi."))], ttl="never")
        yield opened


@pytest.fixture
def run(store):
    def call(words, *more, code=0):
        result = CliRunner().invoke(
            app, [*words.split(), *map(str, more), "--json", "--store", str(store.path)]
        )
        assert result.exit_code == code, result.output
        return valid(words, result.stdout)

    return call


def valid(words, printed):
    found = json.loads(printed)
    schema = next(SCHEMAS[name] for name in sorted(SCHEMAS, reverse=True) if words.startswith(name))
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


def test_schemas_are_schemas_and_allow_nothing_else():
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"more": 1}, schema)
        assert schema["required"] == list(schema["properties"])
        assert schema["additionalProperties"] is False


@pytest.mark.parametrize("words", SCHEMAS)
def test_every_field_is_documented(words):
    sections = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)
    (section,) = (each for each in sections if each.startswith(f"{words}\n"))
    if words == "sessions":
        assert "rwkv-state sessions --json" in sections[0]
    for field in set(_fields(SCHEMAS[words])):
        assert f"`{field}`" in section, field


def _fields(schema):
    for name, inner in schema.get("properties", {}).items():
        yield name
        yield from _fields(inner)
    for inner in (schema.get("items"), *schema.get("anyOf", ())):
        if inner:
            yield from _fields(inner)


def test_sessions(run, store):
    found = run("sessions")
    assert found["store"] == str(store.path)
    assert [each["session"] for each in found["sessions"]] == ["alice", "bob", "\ud800 [red]"]
    unread, bob = found["sessions"][2], found["sessions"][1]
    assert (unread["head"], unread["model"], unread["unread"]) == (None, None, 1)
    assert unread["expires"] is None
    assert (bob["turns"], bob["model"]) == (2, "RWKV-7 2x64 model")
    assert bob["expires"] > bob["updated"] >= bob["created"]
    assert [each["session"] for each in run("sessions --prefix a")["sessions"]] == ["alice"]


def test_a_damaged_session_is_named_and_said_of_on_standard_error(store):
    with closing(sqlite3.connect(store.path / "cache.db", isolation_level=None)) as database:
        database.execute("UPDATE sessions SET unread = x'00' WHERE name = ?", (b"alice",))
    result = CliRunner().invoke(app, ["sessions", "--json", "--store", str(store.path)])
    assert valid("sessions", result.stdout)["damaged"] == ["alice"]
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "empty"), [("sessions", "sessions"), ("prune", "removed"), ("cache", "states")]
)
def test_where_there_is_nothing_the_document_says_so(tmp_path, words, empty):
    place = ["--dir" if words == "cache" else "--store", str(tmp_path / "none")]
    result = CliRunner().invoke(app, [words, "--json", *place])
    assert result.exit_code == 0
    assert not valid(words, result.stdout)[empty]
    assert result.stderr.startswith("note: There is no")
    assert not (tmp_path / "none").exists()


def test_show(run, store):
    found = run("show", "bob")
    assert [turn["state"] for turn in found["log"]] == [entry.ref for entry in store.log("bob")]
    assert found["log"][0]["kept"]
    (message,) = run("show", "\ud800 [red]")["unread_messages"]
    assert message == json.loads(store.session("\ud800 [red]").unread[0])


def test_an_error_is_a_sentence_and_no_document(store):
    result = CliRunner().invoke(app, ["show", "nobody", "--json", "--store", str(store.path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no session 'nobody'" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cache", "--json", "explain", "Hi."], "behind explain"),
        (["cache", "--tree", "clear"], "of `cache` alone"),
        (["doctor", "--no-trial"], "name a model"),
    ],
)
def test_no_option_is_dropped(words, said):
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.stderr


def test_prune(run):
    assert run("prune")["removed"] == 0


def test_doctor(run, store, monkeypatch, tmp_path):
    monkeypatch.setattr("langchain_rwkv_state.cli.doctor._demo", lambda: iter(()))
    monkeypatch.setattr("langchain_rwkv_state.cli.model_check.TRIAL_SECONDS", 0.05)
    found = run("doctor", "--model", "demo")
    assert found["well"]
    figures = {each["name"]: (each["figure"], each["unit"]) for each in found["findings"]}
    assert figures["sessions"] == (3, "sessions")
    assert figures["memory of a state"] == (202_752, "bytes")
    assert figures["speed"][0] > 0
    (file,) = store.path.glob(f"??/{store.head('alice')[-64:]}-*")
    file.unlink()
    found = run("doctor", code=1)
    assert not found["well"]
    assert any("doctor --fix" in (each["advice"] or "") for each in found["findings"])


def test_inspect_diff_and_codecs(run):
    assert run("inspect", "bob")["layers"] == 2
    found = run("diff", "alice", "bob", "--metric", "l2")
    assert (found["first"], found["second"], found["metric"]) == ("alice", "bob", "l2")
    assert found["total"] > max(found["layers"]) > 0
    assert len(found["tensors"]) == 6
    codecs = {each["codec"]: each for each in run("codecs", "bob")["codecs"]}
    assert codecs["exact"]["moved"] == 0 < codecs["int8"]["moved"]
    assert codecs["exact"]["kl_nats"] is None


def test_memory(tmp_path):
    torch.save(read_tensors(locate("demo")), tmp_path / "m.pth")
    words = ["memory", "--json", "--model", str(tmp_path / "m.pth"), "-c", "1000"]
    found = valid("memory", CliRunner().invoke(app, words).stdout)
    assert (found["layers"], found["state_bytes"]) == (6, 202_752)
    (length,) = found["contexts"]
    assert length["cache_bytes"] == 2 * 6 * 128 * 2 * 1000 == 4 * length["grouped_cache_bytes"]


def test_size():
    words = ["size", "--json", "--slots", "3", "--sessions", "10", "--history", "2"]
    found = valid("size", CliRunner().invoke(app, words).stdout)
    assert (found["state_bytes"], found["slots_bytes"]) == (202_752, 3 * 202_752)
    assert found["stored_bytes"] == 10 * 3 * found["stored_state_bytes"]
    assert found["redis_bytes"] == 30 * found["redis_state_bytes"] > found["stored_bytes"]


def test_cache_and_explain(tmp_path):
    (tmp_path / "prompts.yaml").write_text(
        "- {name: lamps, system: You answer questions on lamps.}\n"
        "- {name: red, system: You answer questions on lamps. Red ones., salt: tenant}\n"
    )
    place = ["--dir", str(tmp_path / "cache")]
    words = ["warm", "-f", str(tmp_path / "prompts.yaml"), "--store", str(tmp_path / "store")]
    assert CliRunner().invoke(app, [*words, *place]).exit_code == 0
    found = valid("cache", CliRunner().invoke(app, ["cache", "--json", *place]).stdout)
    pinned = [each for each in found["states"] if each["pin"] == "lamps"]
    assert len(pinned) == 1
    assert (pinned[0]["expires"], pinned[0]["text"], pinned[0]["salted"]) == (None, None, False)
    assert found["bytes"] == sum(each["bytes"] for each in found["states"])
    tree = valid("cache", CliRunner().invoke(app, ["cache", "--tree", "--json", *place]).stdout)
    for each in tree["states"]:
        whole, at = each["text"], each["above"]
        while at is not None:
            whole, at = tree["states"][at]["text"] + whole, tree["states"][at]["above"]
        assert "You answer questions on lamps." in whole
    explain = ["cache", "explain", "Hi.", "--system", "You answer questions on lamps.", "--json"]
    told = valid("cache explain", CliRunner().invoke(app, [*explain, *place]).stdout)
    assert 0 < told["reused"] < told["tokens"]
    assert told["cause"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (1_764_428_400.7, "2025-11-29T15:00:00Z"),
        (float("inf"), None),
        (1e12, "9999-12-31T23:59:59Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_times_are_told_in_full(seconds, shown):
    assert output.iso_time(seconds) == shown
