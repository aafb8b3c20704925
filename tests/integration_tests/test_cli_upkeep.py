"""Looking after a store, by commands in processes of their own, as an operator's script does."""

from __future__ import annotations

import json

import jsonschema

from langchain_rwkv_state.cli.json_schemas import SCHEMAS
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.command import rwkv_state
from tests.helpers.states import turns


def test_a_script_names_copies_restores_and_reads(tmp_path):
    store = tmp_path / "store"
    with DiskStateStore(store) as opened:
        turns(opened, "bob", 3)

    def said(*words, at=store):
        done = rwkv_state(at, *words)
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout

    assert said("fork", "bob", "al") == "Forked bob as al: 3 turns.\n"
    assert said("rewind", "al") == "Took back 1 turn of al: 2 turns.\n"
    assert said("rename", "al", "cy") == "Renamed al as cy: 2 turns.\n"
    assert said("backup", str(tmp_path / "copy")).startswith("Backed up 2 sessions and 2 states")
    said("rm", "bob", "cy")
    assert said("restore", str(tmp_path / "copy"), at=tmp_path / "again").startswith("Restored 2")
    found = json.loads(said("sessions", "--json", at=tmp_path / "again"))
    jsonschema.validate(found, SCHEMAS["sessions"])
    assert [(each["session"], each["turns"]) for each in found["sessions"]] == [
        ("bob", 3),
        ("cy", 2),
    ]

    with DiskStateStore(tmp_path / "again") as opened:
        (file,) = opened.path.glob(f"??/{str(opened.head('bob'))[-64:]}-*")
        file.unlink()
    repaired = rwkv_state(tmp_path / "again", "doctor", "--fix", "--json")
    assert (repaired.returncode, repaired.stderr) == (0, "")
    report = json.loads(repaired.stdout)
    jsonschema.validate(report, SCHEMAS["doctor"])
    done = [each["value"] for each in report["findings"] if each["name"] == "done"]
    assert any("'bob' went back from turn 3 to turn 2" in sentence for sentence in done)

    refused = rwkv_state(tmp_path / "again", "show", "nobody", "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: There is no session 'nobody'")
