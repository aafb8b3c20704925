"""What a service takes is computed as it will be: files by their bytes, slots by their cells."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.engine import Limits
from langchain_rwkv_state.state import CODECS, StateLayout
from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.toolbox.sizing import redis_value_bytes, size_of
from tests.helpers.states import random_state

LAYOUT = StateLayout.of(7, n_layer=2, n_embd=128, head_size=64)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "zstd"])
def test_a_stored_state_has_the_bytes_of_its_file(tmp_path, codec):
    with DiskStateStore(tmp_path / "s", codec=codec) as store:
        for turn in (1, 2):
            ref = store.stage(random_state([turn], layout=LAYOUT))
            store.commit("bob", ref, store.head("bob"))
        files = [each.stat().st_size for each in store.path.glob("??/*") if each.is_file()]
    assert len(files) == 2
    computed = size_of(LAYOUT, 0, sessions=1, history=1, codec=codec)
    assert computed.states_a_session == 2
    assert sum(files) == pytest.approx(
        computed.stored_bytes, abs=2 * 160
    )  # a fingerprint, shorter here


def test_zstd_is_given_as_what_it_starts_from():
    exact, zstd = (size_of(LAYOUT, 0, codec=codec) for codec in ("exact", "zstd"))
    assert zstd.stored_state_bytes == exact.stored_state_bytes


def test_on_a_card_a_slot_is_three_cells():
    on_cpu, on_card = (size_of(LAYOUT, 0, slots=5, on_card=card) for card in (False, True))
    assert on_card.slots_bytes == 3 * on_cpu.slots_bytes == 15 * LAYOUT.nbytes
    narrow = size_of(LAYOUT, 0, slots=5, on_card=True, state_dtype=torch.float16)
    assert narrow.slots_bytes < 0.6 * on_card.slots_bytes


@pytest.mark.parametrize(
    ("nbytes", "measured"),
    # By `MEMORY USAGE` of Redis 7.0.15, less its 56 bytes of a key.
    [(100_000, 114_688), (2_450_000, 2_621_440), (21_300_000, 25_165_824)],
)
def test_a_value_in_redis_is_what_redis_says(nbytes, measured):
    assert redis_value_bytes(nbytes) == measured


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"sessions": -1}, {"history": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="slots must be at least 1"):
        size_of(LAYOUT, 0, **wrong)


def test_the_command_shows_weights_slots_and_sessions():
    found = CliRunner().invoke(app, ["size", "--sessions", "1500", "--history", "0"])
    assert found.exit_code == 0, found.output
    rows = dict(re.split(r"\s{2,}", line.strip())[:2] for line in found.stdout.splitlines()[3:10])
    assert rows[f"{Limits.slots} slots, a process"] == f"{Limits.slots * 202_752:,}"
    stored = int(rows["a stored state, exact"].replace(",", ""))
    assert rows["1,500 sessions of 1 state, on a disk"] == f"{1500 * stored:,}"


def test_a_card_need_not_be_there_to_be_sized_for():
    on_card = CliRunner().invoke(app, ["size", "--strategy", "cuda fp16"]).stdout
    assert f"{3 * Limits.slots * 202_752:,}" in on_card


def test_the_commands_slots_are_those_of_a_model():
    assert (
        "default: 64" in CliRunner().invoke(app, ["size", "--help"], env={"COLUMNS": "150"}).stdout
    )
    assert Limits.slots == 64
