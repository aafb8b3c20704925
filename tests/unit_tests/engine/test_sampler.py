"""The sampler: the `rwkv` package's semantics, repeatable, exact at its borders."""

from __future__ import annotations

import bisect
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.utils import PIPELINE

from langchain_rwkv_state.engine import Sampling
from langchain_rwkv_state.engine import sampler as sampler_module
from langchain_rwkv_state.engine.choices import Candidates
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler, scan_rows
from langchain_rwkv_state.errors import EngineError
from langchain_rwkv_state.runtime.native import sampling as native
from langchain_rwkv_state.runtime.sampling import bits_of

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40, unique=True).map(
    lambda values: np.array(values, dtype=np.float32)
)


@pytest.fixture(autouse=True, params=["compiled", "NumPy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How tokens are chosen: every test here holds for both ways."""
    if request.param == "NumPy":
        monkeypatch.setattr(sampler_module, "compiled", lambda: None)
    elif native.compiled() is None:
        pytest.skip("there is no C++ compiler")
    return str(request.param)


def picks(sampling: Sampling, logits: torch.Tensor, count: int) -> list[int]:
    sampler = Sampler(sampling)
    found = []
    for _ in range(count):
        found.append(sampler.pick(logits))
        sampler.saw(found[-1], b"x")
    return found


def global_numbers() -> tuple[float, float, float]:
    """The next numbers of the process's generators, which are set back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return found


def distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The weights of the tokens within top-p and top-k; those come first in their order."""
    left = Candidates.of(logits, Sampler(sampling).draw(len(logits), None))
    order = np.argsort(-left.scores, kind="stable")
    within = bisect.bisect_left(order, True, key=lambda place: left.better(place) is not None)
    full = np.zeros(len(logits))
    full[order[:within]] = left.weights[order[:within]]
    total: float = full.sum()
    return full / total


def package_distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What `PIPELINE.sample_logits` of the rwkv package 0.8.32 draws from, on the CPU."""
    found: list[np.ndarray] = []

    def choice(*, a: int, p: np.ndarray) -> int:
        found.append(p)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "choice", choice)
        PIPELINE.sample_logits(
            None,
            torch.from_numpy(logits.copy()),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
    return found[0]


@settings(deadline=None)
@given(
    logits=LOGITS,
    temperature=st.floats(0.2, 3),
    top_p=st.floats(0.01, 0.99),
    top_k=st.integers(0, 45),
)
def test_the_choice_is_that_of_the_rwkv_package(logits, temperature, top_p, top_k):
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    ours, theirs = distribution(logits, sampling), package_distribution(logits, sampling)
    probabilities = torch.from_numpy(logits).softmax(-1).double().sort(descending=True).values
    if bool((probabilities.cumsum(0) - top_p).abs().min() < 1e-5):
        return  # rounding decides which side of the border a token is on
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@given(logits=LOGITS)
def test_temperature_zero_takes_the_most_likely(logits):
    assert picks(Sampling(temperature=0, top_p=0.01), torch.from_numpy(logits), 1) == [
        int(logits.argmax())
    ]


@given(logits=LOGITS, top_k=st.integers(1, 50))
def test_top_k_leaves_the_k_likeliest(logits, top_k):
    left = distribution(logits, Sampling(top_p=1, top_k=top_k)).nonzero()[0]
    assert set(left) <= set(np.argsort(-logits)[:top_k])


def test_top_k_of_one_is_greedy_even_among_equals():
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert set(picks(Sampling(top_k=1, top_p=1), logits, 30)) == {1}
    assert set(picks(Sampling(top_k=2, top_p=1), logits, 60)) == {1, 2}


def test_equal_tokens_at_the_border_of_top_p_are_all_kept():
    left = distribution(np.zeros(10, dtype=np.float32), Sampling(top_p=0.05))
    np.testing.assert_allclose(left, np.full(10, 0.1))


def test_a_flat_distribution_over_a_large_vocabulary_is_cut_where_it_should():
    logits = torch.randn(65_536, generator=torch.Generator().manual_seed(0)).numpy()
    for top_p in (0.001, 0.7, 0.999):
        left = distribution(logits, Sampling(top_p=top_p)) > 0
        probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
        kept = probabilities[left].sum()
        assert kept >= top_p - 1e-6
        assert kept - probabilities[left].min() < top_p + 1e-6


def test_a_seed_repeats_the_choices_and_leaves_the_global_numbers_alone():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    first = picks(Sampling(seed=7, top_p=1), logits, 50)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = global_numbers()
    assert picks(Sampling(seed=7, top_p=1), logits, 50) == first
    assert global_numbers() == states
    assert picks(Sampling(seed=8, top_p=1), logits, 50) != first
    assert picks(Sampling(top_p=1), logits, 50) != picks(Sampling(top_p=1), logits, 50)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([1.0, 2.0, 3.0])
    counts = np.bincount(picks(Sampling(seed=0, top_p=1), logits, 8_000), minlength=3)
    np.testing.assert_allclose(counts / 8_000, logits.softmax(-1).numpy(), atol=0.02)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures_are_no_error(temperature):
    logits = torch.tensor([100.0, -100.0, 99.0])
    found = set(picks(Sampling(temperature=temperature, top_p=1), logits, 60))
    assert found == ({0} if temperature < 1 else {0, 1, 2})


class TestPenalties:
    """Presence and frequency, as `PIPELINE.generate` counts them."""

    def test_penalties_follow_the_package_step_by_step(self):
        sampling = Sampling(
            temperature=0, presence_penalty=0.3, frequency_penalty=0.5, penalty_decay=0.9
        )
        generator = torch.Generator().manual_seed(3)
        sampler = Sampler(sampling)
        occurrence: dict[int, float] = {}
        for _ in range(200):
            logits = torch.randn(100, generator=generator)
            expected = logits.clone()
            for token, count in occurrence.items():
                expected[token] -= 0.3 + count * 0.5
            token = sampler.pick(logits)
            assert token == int(expected.argmax())
            piece = b"7" if token % 3 == 0 else b"x"
            sampler.saw(token, piece)
            for seen in occurrence:
                occurrence[seen] *= 0.9
            occurrence[token] = occurrence.get(token, 0.0) + (0.0 if piece == b"7" else 1.0)

    def test_a_presence_penalty_alone_makes_repeats_rarer(self):
        logits = torch.tensor([1.0, 0.9, 0.8])
        assert picks(Sampling(temperature=0, presence_penalty=5), logits, 3) == [0, 1, 2]
        assert picks(Sampling(temperature=0), logits, 3) == [0, 0, 0]

    def test_digits_are_not_counted(self):
        logits = torch.tensor([1.0, 0.9])
        sampler = Sampler(Sampling(temperature=0, frequency_penalty=5))
        sampler.saw(0, b"42")
        assert sampler.pick(logits) == 1  # "42" is no run of the digits in order
        sampler = Sampler(Sampling(temperature=0, frequency_penalty=5))
        sampler.saw(0, b"4")
        assert sampler.pick(logits) == 0

    def test_the_logits_handed_in_stay_as_they_are(self):
        logits = torch.tensor([1.0, 0.9])
        picks(Sampling(presence_penalty=1, frequency_penalty=1), logits, 5)
        assert logits.tolist() == pytest.approx([1.0, 0.9])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    with pytest.raises(EngineError, match="wider dtype"):
        picks(Sampling(temperature=temperature), torch.tensor([0.0, bad, 1.0]), 1)


class TestManyAtOnce:
    """Rows that are looked over together are chosen from as each is alone."""

    SETTINGS = (
        Sampling(temperature=0),
        Sampling(seed=1, top_p=0.3),
        Sampling(seed=2, top_p=0.9, temperature=1.5),
        Sampling(seed=3, top_p=1, top_k=40),
        Sampling(seed=4, top_p=0.7, presence_penalty=0.5, frequency_penalty=0.5),
        Sampling(temperature=0, presence_penalty=2),
        Sampling(seed=5, top_p=1, temperature=0.7),
    )

    def test_a_row_does_not_depend_on_the_others(self):
        generator = torch.Generator().manual_seed(0)
        steps = [torch.randn(21, 65_536, generator=generator) * scale for scale in (1, 3, 6)]
        together = [Sampler(sampling) for sampling in self.SETTINGS * 3]
        alone = [Sampler(sampling) for sampling in self.SETTINGS * 3]
        for logits in steps:
            for number, row in enumerate(scan_rows(logits)):
                token = together[number].choose(row)
                assert token == alone[number].pick(logits[number].clone())
                together[number].saw(token, b"x")
                alone[number].saw(token, b"x")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_a_row_that_is_no_numbers_is_told_from_the_others(self, bad):
        logits = torch.zeros(3, 10)
        logits[1, 4] = bad
        logits[2, 7] = 1
        assert [row.finite for row in scan_rows(logits)] == [True, False, True]
        assert [row.best for row in scan_rows(logits)][::2] == [0, 7]


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 4.0, 40.0, 3e37])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1 - 1e-9])
def test_top_p_keeps_no_token_too_few_and_none_too_many(scale, top_p):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(65_536, generator=generator) * scale).numpy()
    left = distribution(logits, Sampling(top_p=top_p)) > 0
    probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
    kept = probabilities[left]
    assert kept.sum() >= top_p - 1e-6
    if len(set(logits.tolist())) > 1:
        assert kept.sum() - kept.min() < top_p + 1e-6
    assert logits[left].min() > (logits[~left].max() if (~left).any() else -np.inf)


@pytest.mark.parametrize(
    "extreme",
    [
        *({"temperature": value} for value in (5e-324, 1e-300, 1e300, 1.7e308, 10**300)),
        *({"top_p": value} for value in (5e-324, 1e-300, 1e-17, 1 - 1e-16)),
        *({"top_k": value} for value in (1, 1000, 2**63, 10**400)),
        *({"presence_penalty": value} for value in (1e308, -1e308, 1e39, -1e39)),
        *({"frequency_penalty": value} for value in (1e308, -1e308, 1e39, -1e39)),
        {"presence_penalty": 1e308, "frequency_penalty": -1e308},
        {"presence_penalty": 1e308, "frequency_penalty": 1e308, "penalty_decay": 5e-324},
        {"presence_penalty": -1e308, "frequency_penalty": -1e308, "penalty_decay": 1},
        *({"seed": value} for value in (-1, -(2**63), 2**64, 10**400, -(10**4000))),
        {"temperature": np.float32(0.5), "top_k": np.int32(3), "seed": np.int64(5)},
    ],
)
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("scale", [1, 3e37])
def test_a_number_of_its_range_works_however_extreme(extreme, greedy, scale):
    sampling = Sampling(**{**extreme, **({"temperature": 0} if greedy else {})})
    sampler = Sampler(sampling)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * scale
    for number in range(60):  # more than there are tokens
        token = sampler.pick(logits)
        assert 0 <= token < 50
        sampler.saw(token, b"1" if number % 3 else b"x")


def test_extreme_numbers_mean_what_they_say():
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert set(picks(Sampling(temperature=1e-300, top_p=1), logits, 30)) == {1}
    assert set(picks(Sampling(temperature=1e300, top_p=1), logits, 60)) == {0, 1, 2}
    assert set(picks(Sampling(top_p=5e-324), logits, 30)) == {1}
    assert sorted(picks(Sampling(presence_penalty=1e308), logits, 3)) == [0, 1, 2]
    assert len(set(picks(Sampling(presence_penalty=-1e308, top_p=1), logits, 30))) == 1


def test_each_seed_is_another_one_negative_ones_too():
    logits = torch.zeros(1000)
    seeds = (0, 1, -1, 2, -2, 255, -255, 256, -256)
    found = {tuple(picks(Sampling(seed=seed, top_p=1), logits, 5)) for seed in seeds}
    assert len(found) == len(seeds)
    assert picks(Sampling(seed=-7), logits, 5) == picks(Sampling(seed=-7), logits, 5)


class TestAllowed:
    """A mask of what may be chosen, as grammars make them."""

    LOGITS = torch.tensor([3.0, 2.0, 1.0, *[-1.0] * 37])

    @staticmethod
    def words(*ids: int) -> np.ndarray:
        found = np.zeros(2, dtype=np.uint32)
        for each in ids:
            found[each // 32] |= np.uint32(1 << each % 32)
        return found.view(np.int32)

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_only_allowed_ids_are_chosen(self, temperature: float) -> None:
        sampler = Sampler(Sampling(temperature=temperature, top_p=0.1, seed=0))
        (row,) = scan_rows(self.LOGITS[None])
        assert sampler.choose(row, self.words(2, 31, 39)) == 2
        assert sampler.choose(row, self.words(39)) == 39
        assert sampler.choose(row) == 0

    def test_nothing_allowed_is_an_error(self) -> None:
        (row,) = scan_rows(self.LOGITS[None])
        with pytest.raises(EngineError, match="None of the 40 ids is allowed"):
            Sampler(Sampling()).choose(row, self.words())

    def test_logits_that_are_no_numbers_are_an_error_though_not_allowed(self) -> None:
        logits = self.LOGITS.clone()
        logits[7] = float("inf")
        (row,) = scan_rows(logits[None])
        with pytest.raises(EngineError, match="wider dtype"):
            Sampler(Sampling()).choose(row, self.words(1))

    @pytest.mark.parametrize(
        "wrong", [np.zeros(1, np.int32), np.zeros(2, np.uint32), np.zeros(40, np.bool_)]
    )
    def test_a_mask_of_another_form_is_an_error(self, wrong: np.ndarray) -> None:
        (row,) = scan_rows(self.LOGITS[None])
        with pytest.raises(ValueError, match="allowed must be 2 words of int32"):
            Sampler(Sampling()).choose(row, wrong)


class TestAheadOfTime:
    """Samplers that are known when rows are looked over choose at once, and choose the same."""

    @staticmethod
    def rows() -> torch.Tensor:
        return torch.randn(7, 640, generator=torch.Generator().manual_seed(0))

    def test_it_changes_no_token(self) -> None:
        first, second = ([Sampler(s) for s in TestManyAtOnce.SETTINGS] for _ in range(2))
        for step in range(12):
            logits = self.rows() * (step + 1)
            ahead = scan_rows(logits, dict(enumerate(first)))
            for one, other, row, plain in zip(first, second, ahead, scan_rows(logits), strict=True):
                token = one.choose(row)
                assert token == other.choose(plain)
                one.saw(token, b"x")
                other.saw(token, b"x")

    def test_another_mask_a_second_choice_and_a_forced_token_change_no_later_one(self) -> None:
        first, second = (Sampler(Sampling(seed=3, top_p=1, presence_penalty=5)) for _ in range(2))
        everything = np.full(20, -1, dtype=np.int32)
        few = np.array([255, *[0] * 19], dtype=np.int32)
        for step in range(20):
            logits = self.rows()[step % 7][None]
            (row,) = scan_rows(logits, {0: first}, {0: few} if step % 2 else None)
            (plain,) = scan_rows(logits)
            if step % 5 == 4:  # forced: nothing is chosen
                for each in (first, second):
                    each.saw(step, b"x")
            for allowed in (None, everything, few, None)[step % 3 :]:
                token = first.choose(row, allowed)
                assert token == second.choose(plain, allowed)
            for each in (first, second):
                each.saw(token, b"x")

    def test_a_choice_is_handed_over_once(self) -> None:
        sampler = Sampler(Sampling(top_p=1, seed=0))
        (row,) = scan_rows(torch.zeros(1, 640), {0: sampler})
        assert len({sampler.choose(row) for _ in range(20)}) > 10

    def test_a_row_that_is_no_numbers_fails_alone(self) -> None:
        logits = torch.zeros(2, 640)
        logits[0, 5] = float("nan")
        samplers = {row: Sampler(Sampling(seed=row)) for row in range(2)}
        rows = scan_rows(logits, samplers)
        with pytest.raises(EngineError, match="wider dtype"):
            samplers[0].choose(rows[0])
        assert 0 <= samplers[1].choose(rows[1]) < 640


class TestHandedOver:
    """A card that knows a sampler's state chooses in its place."""

    def test_the_state_says_what_the_sampler_draws(self) -> None:
        sampling = Sampling(
            temperature=0.5, top_p=0.3, top_k=4, presence_penalty=0.5, frequency_penalty=0.25
        )
        sampler = Sampler(replace(sampling, seed=-7, penalty_decay=0.5))
        logits = torch.zeros(640)
        for token, piece in ((3, b"x"), (5, b"7"), (3, b"x"), (9, b" ")):
            sampler.pick(logits)
            sampler.saw(token, piece)
        state, draw = sampler.handed_over(), sampler.draw(640, None)
        assert state[:6] == (0.5, 0.3, 4, 0.5, 0.25, 0.5)
        assert bits_of(state.key, state.n) == draw.bits
        assert (state.n, state.ids.tolist()) == (4, [3, 5, 9])
        assert state.counts.tolist() == [0.625, 0, 0]
        assert (state.presence + state.frequency * state.counts == draw.penalties).all()

    def test_what_was_handed_over_stays_as_it_was(self) -> None:
        sampler = Sampler(Sampling(presence_penalty=1))
        sampler.saw(3, b"x")
        state = sampler.handed_over()
        sampler.saw(4, b"x")
        assert (state.ids.tolist(), state.counts.tolist()) == ([3], [1])

    def test_a_choice_is_numbered_however_often_its_row_is_looked_at(self) -> None:
        sampler = Sampler(Sampling(seed=0))
        for number in range(4):
            (row,) = scan_rows(torch.zeros(1, 640), {0: sampler})
            assert sampler.draw(640, None).bits == sampler.draw(640, None).bits
            assert sampler.n_chosen == sampler.handed_over().n == number
            sampler.choose(row)

    def test_the_first_tokens_of_a_seed_are_the_same_from_now_on(self) -> None:
        logits = torch.linspace(-2, 2, 100)
        assert picks(Sampling(seed=7, top_p=1), logits, 5) == [94, 95, 91, 90, 37]

    @pytest.mark.parametrize("temperature", [0, 1])
    @pytest.mark.parametrize("penalty", [0, 1])
    def test_a_token_that_was_chosen_is_taken_and_no_logits_are_read(
        self, temperature: float, penalty: float
    ) -> None:
        sampler = Sampler(Sampling(temperature=temperature, presence_penalty=penalty))
        mask = np.full(20, -1, dtype=np.int32)
        for number, allowed in enumerate((None, mask, None, mask)):
            row = LogitsRow(self.no_logits, 0, True)
            sampler.chose(row, allowed, 17)
            assert sampler.choose(row, allowed) == 17
            sampler.saw(17, b"x")
            assert sampler.n_chosen == number + 1

    def test_the_highest_of_all_is_taken_and_no_logits_are_read(self) -> None:
        sampler = Sampler(Sampling(temperature=0))
        assert sampler.choose(LogitsRow(self.no_logits, 5, True)) == 5

    def test_logits_that_are_wanted_are_fetched_once(self) -> None:
        logits, calls = np.arange(40, dtype=np.float32), []

        def fetch() -> np.ndarray:
            calls.append(1)
            return logits

        sampler, row = Sampler(Sampling(top_k=1)), LogitsRow(fetch, 39, True)
        sampler.chose(row, None, 3)
        assert not calls
        assert [sampler.choose(row) for _ in range(3)] == [3, 39, 39]
        assert row.scores is logits
        assert len(calls) == 1

    @staticmethod
    def no_logits() -> np.ndarray:
        raise AssertionError("the logits stay where they are")
