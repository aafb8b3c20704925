"""Heat maps as pictures: a panel for each map, every cell drawn, a colour bar for each."""

import math

import pytest

from langchain_rwkv_state.state import HeadMap, StateLayout, difference_map, head_maps
from langchain_rwkv_state.views.plots.figure import save
from langchain_rwkv_state.views.plots.heat_plot import draw_maps
from tests.helpers.states import random_state
from tests.unit_tests.conftest import LAYOUTS


def panels(drawn):
    """Returns the diagrams, without their colour bars."""
    return [each for each in drawn.axes if each.images]


@pytest.mark.parametrize("version", LAYOUTS)
def test_every_version_is_drawn_with_axes_title_and_colour_bar(version, tmp_path):
    a, b = (random_state([n], layout=LAYOUTS[version]) for n in (1, 2))
    maps = [*head_maps(a), difference_map(a, b)]
    drawn = draw_maps(maps, "bob")
    found = panels(drawn)
    assert len(drawn.axes) == 2 * len(found) == 2 * len(maps)
    assert drawn.get_suptitle() == "bob"
    for axes, each in zip(found, maps, strict=True):
        assert axes.get_title(loc="left") == each.title
        assert (axes.get_xlabel(), axes.get_ylabel()) == (each.columns, "layer")
        assert axes.images[0].get_array().shape == each.shape
    for ending in ("png", "svg"):
        save(drawn, tmp_path / f"map.{ending}")
        assert (tmp_path / f"map.{ending}").stat().st_size > 1_000


def test_few_cells_carry_their_figures_and_many_do_not():
    few = draw_maps([HeadMap("rank", "Rank", "head", ((1.0, 2.5), (3.0, math.nan)))], "few")
    (axes,) = panels(few)
    assert [each.get_text() for each in axes.texts] == ["1", "2.5", "3", "not finite"]
    assert axes.get_title(loc="left") == "Rank  (1 not finite, red)"
    many = draw_maps([HeadMap("rank", "Rank", "head", ((1.0,) * 64,) * 32)], "many")
    assert not panels(many)[0].texts


@pytest.mark.slow
def test_a_picture_of_32_layers_of_64_heads_is_readable_and_no_poster():
    layout = StateLayout.of(7, n_layer=32, n_embd=512, head_size=8)
    drawn = draw_maps(head_maps(random_state([1], layout=layout)), "large")
    width, height = drawn.get_size_inches()
    assert 8 < width < 14
    assert height < 20
    assert len(panels(drawn)[0].get_xticks()) <= 17


def test_sizes_are_on_a_logarithmic_scale_and_ranks_are_not():
    norm, rank = panels(draw_maps(head_maps(random_state([1], layout=LAYOUTS[7])), "x"))
    assert type(norm.images[0].norm).__name__ == "LogNorm"
    assert type(rank.images[0].norm).__name__ == "Normalize"
