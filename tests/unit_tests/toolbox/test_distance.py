"""A distance is a number, whatever goes along with it; a diff is its table."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.state import Diff, Distance, diff, distance
from tests.helpers.states import random_state

A, B, C = random_state([1]), random_state([2]), random_state([3])
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


def made(total: float) -> Distance:
    return Distance("l2", total, (total,), {})


@given(numbers, numbers)
def test_it_compares_and_counts_as_its_total(x, y):
    a, b = made(x), made(y)
    assert (a < b, a > b, a <= y, x >= b) == (x < y, x > y, x <= y, x >= y)
    assert (a == b, a == y, x == b, a != y) == (x == y, x == y, x == y, x != y)
    assert (a + b, a + 1, 1 + a, a * 2, a - b, -a, abs(a)) == (
        x + y,
        x + 1,
        1 + x,
        x * 2,
        x - y,
        -x,
        abs(x),
    )
    assert sorted([a, b]) == sorted([x, y])
    assert (a == b) <= (hash(a) == hash(b))
    assert hash(a) == hash(x)
    assert sum([a, b]) == sum([x, y])
    assert round(a, 1) == round(x, 1)


def test_it_shows_itself_as_a_number_in_texts_and_shortly_elsewhere():
    found = distance(A, B)
    assert f"{found:.2f}" == f"{found.total:.2f}"
    assert f"{found}" == str(found) == str(found.total)
    assert json.loads(json.dumps(found)) == found
    assert repr(found) == f"Distance('l2', {found.total}, 2 layers)"


def test_other_libraries_take_it_for_one():
    found = distance(A, B)
    assert float(found) == found.total
    assert np.asarray([found, found]).dtype == np.float64
    assert torch.tensor(found).item() == pytest.approx(found)
    assert math.sqrt(found) == math.sqrt(found.total)


def test_it_keeps_what_it_is_made_of_in_copies_and_pickles():
    found = distance(A, B, "rms_relative")
    for same in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert isinstance(same, Distance)
        assert same == found
        assert (same.metric, same.layers, same.tensors) == (
            found.metric,
            found.layers,
            found.tensors,
        )


def test_it_cannot_be_changed():
    found = distance(A, B)
    with pytest.raises(AttributeError, match="metric cannot be set"):
        found.metric = "cosine"
    with pytest.raises(AttributeError, match="layers cannot be deleted"):
        del found.layers
    with pytest.raises(TypeError):
        found.tensors["blocks.0.att_kv"] = 0.0  # type: ignore[index]


def test_nan_is_nan():
    assert made(math.nan) != made(math.nan)
    assert not made(math.nan) < 1


class TestDiff:
    def test_its_rows_are_the_layers_and_tensors_of_the_distance(self):
        found, apart = diff(A, B), distance(A, B, "rms_relative")
        assert found.distance == apart
        assert found.columns == ("whole", "att_x_prev", "att_kv", "ffn_x_prev")
        assert [row[0] for row in found.rows] == list(apart.layers)
        assert found.rows[1][2] == apart.tensors["blocks.1.att_kv"]
        assert found.as_dicts()[1] == {
            "layer": 1,
            "whole": apart.layers[1],
            **{kind: apart.tensors[f"blocks.1.{kind}"] for kind in found.kinds},
        }

    def test_it_prints_as_a_table_and_has_a_short_name(self):
        found = diff(A, C, "cosine")
        head, *layers, whole = str(found).splitlines()
        assert head.split() == ["layer", *found.columns]
        assert [line.split()[0] for line in layers] == ["0", "1"]
        assert whole.split() == ["all", f"{found.distance:.4g}"]
        assert repr(found) == f"Diff({found.distance!r})"

    def test_without_figures_of_tensors_it_has_one_column(self):
        found = Diff.of(Distance("logits_kl", 1.0, (0.25, 0.5), {}))
        assert found.columns == ("whole",)
        assert str(found).split() == ["layer", "whole", "0", "0.25", "1", "0.5", "all", "1"]
