"""The compiled choice takes NumPy's token, id for id, and both take those that they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_rwkv_state.engine import choices
from langchain_rwkv_state.runtime.native import build
from langchain_rwkv_state.runtime.native import sampling as native
from langchain_rwkv_state.runtime.sampling import Draw, Floats, Found
from tests.helpers.logits import NOTHING, SIZES, mask, some_draw, some_row

needs_compiler = pytest.mark.skipif(native.compiled() is None, reason="there is no C++ compiler")


def compiled(logits: Floats, draws: list[Draw | None]) -> list[Found]:
    choose = native.compiled()
    assert choose is not None
    return choose(logits, draws)


def agree(rng: np.random.Generator, size: int, count: int) -> None:
    logits = np.stack([some_row(rng, size) for _ in range(count)])
    draws: list[Draw | None] = [some_draw(rng, size) for _ in range(count)]
    for row, draw, found in zip(logits, draws, compiled(logits, draws), strict=True):
        assert draw is not None
        assert (found.finite, found.best) == (True, int(row.argmax()))
        assert found.chosen == choices.choose(row, draw), draw


@needs_compiler
@given(seed=st.integers(0, 2**32), size=st.sampled_from(SIZES))
@settings(max_examples=60)
def test_both_ways_choose_the_same_token(seed: int, size: int) -> None:
    agree(np.random.default_rng(seed), size, 20)


@needs_compiler
def test_both_ways_choose_the_same_token_of_a_large_vocabulary() -> None:
    agree(np.random.default_rng(0), 65_536, 80)


@needs_compiler
def test_a_row_is_chosen_from_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(1)
    logits = np.stack([some_row(rng, 640) for _ in range(30)])
    draws: list[Draw | None] = [some_draw(rng, 640) if n % 5 else None for n in range(30)]
    together = compiled(logits, draws)
    for row, draw, found in zip(logits, draws, together, strict=True):
        assert compiled(row[None], [draw]) == [found]
    assert {found.chosen for found in together[::5]} == {None}


@needs_compiler
def test_rows_that_lie_apart_are_read_where_they_are() -> None:
    rng = np.random.default_rng(2)
    wide = rng.standard_normal((4, 200)).astype(np.float32)
    for part in (wide[:, :100], wide[::2], wide[:, ::2], wide.T):
        draws: list[Draw | None] = [Draw(1, 0.9, 0, 5, *NOTHING)] * len(part)
        same = compiled(part.copy(), draws)
        assert compiled(part, draws) == same


def chosen_by(way: str, logits: Floats, draws: list[Draw | None]) -> list[int | None]:
    if way == "compiled":
        return [found.chosen for found in compiled(logits, draws)]
    pairs = zip(logits, draws, strict=True)
    return [choices.choose(row, draw) for row, draw in pairs if draw is not None]


WAYS = ("NumPy", pytest.param("compiled", marks=needs_compiler))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        # Of 0.4, 0.3, 0.15, 0.1, 0.05: 0.8 wants three, and what is left is weighed anew.
        ((1, 0.8, 0), [0.4, 0.3, 0.15]),
        ((1, 0.39, 0), [0.4]),
        ((1, 1, 2), [0.4, 0.3]),
        ((1, 0.8, 2), [0.4, 0.3]),
        ((0.5, 0.8, 0), [0.4**2, 0.3**2, 0.15**2]),  # the temperature comes last
        ((1, 1, 0), [0.4, 0.3, 0.15, 0.1, 0.05]),
    ],
)
def test_tokens_within_are_drawn_by_their_weights(
    way: str, settings_: tuple[float, float, int], expected: list[float]
) -> None:
    count, order = 3_000, [3, 0, 4, 1, 2]
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], dtype=np.float32))[order]
    temperature, top_p, top_k = settings_
    rng = np.random.default_rng(3)
    numbers = rng.integers(2**64, size=count, dtype=np.uint64).tolist()
    draws: list[Draw | None] = [Draw(temperature, top_p, top_k, bits, *NOTHING) for bits in numbers]
    found = chosen_by(way, np.tile(logits, (count, 1)), draws)
    shares = np.bincount(np.array(found), minlength=5)[np.argsort(order)] / count
    full = np.zeros(5)
    full[: len(expected)] = np.array(expected) / sum(expected)
    np.testing.assert_allclose(shares, full, atol=0.03)
    assert (shares[len(expected) :] == 0).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_allowed_is_as_if_it_were_not_there(way: str, size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(10):
        logits = some_row(rng, size)
        draw = some_draw(rng, size)._replace(ids=NOTHING[0], penalties=NOTHING[1], allowed=None)
        allowed = rng.random(size) < rng.choice([0.02, 0.5, 1])
        ids = np.flatnonzero(allowed)
        (found,) = chosen_by(way, logits[None], [draw._replace(allowed=mask(allowed))])
        if not len(ids):
            assert found is None
            continue
        few = draw._replace(top_k=min(draw.top_k, len(ids)))
        (alone,) = chosen_by(way, logits[None, ids], [few])
        assert alone is not None
        assert found == ids[alone]


@pytest.mark.parametrize("way", WAYS)
def test_bits_of_a_mask_beyond_the_vocabulary_mean_nothing(way: str) -> None:
    logits = np.zeros((1, 40), dtype=np.float32)
    only_beyond = np.array([0, -256], dtype=np.int32)
    assert chosen_by(way, logits, [Draw(1, 1, 0, 9, *NOTHING, only_beyond)]) == [None]
    assert chosen_by(
        way, logits, [Draw(0, 1, 0, 0, *NOTHING, np.array([0, -128], dtype=np.int32))]
    ) == [39]


@needs_compiler
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 511, 512, 699])
def test_a_logit_that_is_no_number_is_seen_wherever_it_is(bad: float, place: int) -> None:
    logits = np.zeros((2, 700), dtype=np.float32)
    logits[0, place] = bad
    draw = Draw(1, 0.7, 0, 1, *NOTHING, mask(np.arange(700) != place))
    found = compiled(logits, [draw, draw])
    assert [each.finite for each in found] == [False, True]
    assert (found[0].chosen, found[1].chosen is None) == (None, False)


def test_a_user_who_wants_no_compiled_code_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_STATE_COMPILED", "0")
    assert native.compiled() is None
    monkeypatch.delenv("RWKV_STATE_COMPILED")
    monkeypatch.setattr(build, "sampling_library", lambda: None)
    assert native.compiled() is None
