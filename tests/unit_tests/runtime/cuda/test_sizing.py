"""How many requests a card can serve at once, by arithmetic alone."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.cuda.cells import cell_bytes
from langchain_rwkv_state.runtime.cuda.sizing import PassShape, slots_that_fit
from langchain_rwkv_state.state import StateLayout

MIB = 1 << 20
GIB = 1 << 30


def test_as_many_as_were_asked_for_where_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    assert slots_that_fit(64, 10 * MIB, free=3 * GIB, reserve=100 * MIB) == 64
    assert not caplog.records


@pytest.mark.parametrize("free", [GIB, 3 * GIB, 24 * GIB])
def test_fewer_where_they_do_not_with_one_warning(
    free: int, caplog: pytest.LogCaptureFixture
) -> None:
    each, reserve = 13 * MIB, 300 * MIB
    fit = slots_that_fit(10_000, each, free=free, reserve=reserve)
    # With the spare one they leave the reserve and a twentieth, and one more would not.
    assert (3 * fit + 1) * each + reserve <= 0.95 * free < (3 * fit + 4) * each + reserve
    assert len(caplog.records) == 1
    assert f"{fit} requests at once fit on the card, not the 10000 asked for" in caplog.text


def test_a_card_without_room_for_one_is_an_error_that_says_what_to_do() -> None:
    assert slots_that_fit(2, 20 * MIB, free=122 * MIB, reserve=35 * MIB) == 1
    with pytest.raises(ModelLoadError, match=r"120\.0 MiB free .* 3 states .* smaller model"):
        slots_that_fit(2, 20 * MIB, free=120 * MIB, reserve=35 * MIB)
    with pytest.raises(ModelLoadError):
        slots_that_fit(2, 20 * MIB, free=0, reserve=35 * MIB)


def test_the_reserve_grows_with_rows_slots_and_widths() -> None:
    base = PassShape(2048, 8192, 65536, 2, rows=512, slots=64)
    for name, value in asdict(base).items():
        assert replace(base, **{name: 2 * value}).reserve_bytes > base.reserve_bytes


def test_a_card_of_24_gib_holds_the_2_9b_and_its_slots() -> None:
    """Weights in fp16 take 5.9 GB; 200 slots with three cells each are to fit."""
    layout = StateLayout.of(7, n_layer=32, n_embd=2560, head_size=64, shift_dtype="fp16")
    shape = PassShape(2560, 10240, 65536, 2, rows=1024, slots=200)
    free = 24 * GIB - 6 * 10**9 - 500 * MIB
    fit = slots_that_fit(10_000, cell_bytes(layout), free=free, reserve=shape.reserve_bytes)
    assert fit > 200
