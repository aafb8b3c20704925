"""What the meter says of an engine's work."""

from __future__ import annotations

import pytest

from langchain_rwkv_state.engine.stats import EngineStats, Meter


def test_rates_are_per_second_of_work():
    meter = Meter()
    assert meter.rates() == (0.0, 0.0)
    for _ in range(10):
        meter.step(0.5, prompt=64, decoded=15)
    assert meter.rates() == pytest.approx((128, 30))
    assert meter.steps == 10


def test_rates_forget_what_was_long_ago():
    meter = Meter()
    for _ in range(1000):
        meter.step(0.05, prompt=1000, decoded=0)
    for _ in range(1100):
        meter.step(0.01, prompt=0, decoded=1)
    assert meter.rates() == pytest.approx((0, 100), abs=0.2)
    assert len(meter._entries) < 200


def test_the_time_to_the_first_token_is_given_by_its_quantiles():
    meter = Meter()
    assert meter.first_token_after(0.5) is None
    for hundredth in range(100):
        meter.first_token(hundredth / 100)
    assert meter.first_token_after(0.5) == pytest.approx(0.5)
    assert meter.first_token_after(0.99) == pytest.approx(0.99)
    for _ in range(512):
        meter.first_token(3)
    assert meter.first_token_after(0.01) == 3


def test_a_log_line_has_the_numbers():
    stats = EngineStats(3, 2, 100, 50, 1, slots=4, max_slots=64, decode_rate=123.4)
    assert str(stats).startswith("queued 3, active 2, slots 4/64, prefill 0 tokens/s, decode 123")
    assert "p50/p99 - s" in str(stats)
    assert "p50/p99 0.10/0.20 s" in str(
        EngineStats(0, 0, 0, 0, 0, first_token_p50=0.1, first_token_p99=0.2)
    )
