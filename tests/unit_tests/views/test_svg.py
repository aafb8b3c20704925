"""Diagrams as SVG text: well-formed, complete, named, and proof against what is written in them."""

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state.state import HeadMap, head_maps
from langchain_rwkv_state.views.charts import Axis, Bars, Line, bar_chart, line_chart
from langchain_rwkv_state.views.heat_svg import heat_map
from langchain_rwkv_state.views.scale import Scale
from tests.helpers.states import random_state
from tests.unit_tests.state.conftest import LAYOUTS

HOSTILE = "<script>&amp;\"'\x00\x1b\u202e]]>\ud800"
words = st.text(max_size=30)


def read(svg):
    """Parses a diagram; returns its root."""
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    for element in root.iter():
        assert "id" not in element.attrib
        assert not any("url(" in value or "://" in value for value in element.attrib.values())
    return root


def classed(root, kind):
    return [each for each in root.iter() if kind in each.attrib.get("class", "").split()]


def axis(label="x", high=4.0):
    return Axis(label, Scale(0, high), ((0.0, "0"), (high, "end")))


def test_a_heat_map_has_a_cell_with_a_tooltip_for_every_head():
    for layout in LAYOUTS.values():
        for each in head_maps(random_state([1], layout=layout)):
            root = read(heat_map(each))
            layers, heads = each.shape
            tips = [cell[0].text for cell in classed(root, "cell")]
            assert tips == [
                f"layer {layer}, {each.columns} {head}: {each.values[layer][head]:.3g}"
                for layer in range(layers)
                for head in range(heads)
            ]


def test_a_cell_that_is_not_finite_is_drawn_and_said():
    what = HeadMap("norm", "Norm", "head", ((1.0, math.nan), (0.0, 2.0)), log=True)
    cells = classed(read(heat_map(what)), "cell")
    assert [cell[0].text for cell in cells][1] == "layer 0, head 1: not finite"
    one, broken, zero, two = (cell.attrib["fill"] for cell in cells)
    assert one == zero  # 0 has no logarithm: it is drawn as the least size
    assert len({one, broken, two}) == 3


def test_a_map_of_nothing_finite_is_drawn():
    what = HeadMap("rank", "Rank", "head", ((math.nan,),))
    assert "from none to none" in read(heat_map(what)).attrib["aria-label"]


def test_cells_of_a_large_map_do_not_shrink_away():
    what = HeadMap("rank", "Rank", "head", (tuple(map(float, range(64))),) * 61)
    root = read(heat_map(what))
    assert len(classed(root, "cell")) == 61 * 64
    assert min(float(cell.attrib["width"]) for cell in classed(root, "cell")) > 8
    assert float(root.attrib["width"]) > 64 * 8


def test_a_curve_has_a_dot_with_a_tooltip_for_every_point():
    lines = [Line("state", ((0, 1, "40 of 40"), (4, 0.5, "20 of 40"))), Line("other", ())]
    root = read(line_chart(lines, axis("turns"), axis("share", 1.0), name="Recall"))
    assert [dot[0].text for dot in classed(root, "dot")] == ["state: 40 of 40", "state: 20 of 40"]
    texts = [each.text for each in root.iter("text")]
    assert {"turns", "share", "end"} <= set(texts)
    line, _ = classed(root, "line")
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert x1 < x2
    assert y1 < y2  # downwards


def test_a_bar_is_as_long_as_its_share():
    groups = [Bars("exact", ((1.0, "40 of 40"), (0.25, "10 of 40"))), Bars("none", ((0.0, "0"),))]
    root = read(bar_chart(groups, name="Codecs"))
    whole, quarter, none = (float(each.attrib["width"]) for each in classed(root, "bar"))
    assert whole == 4 * quarter > 0
    assert none == 0


@given(words, words, words)
def test_whatever_is_written_in_a_chart_comes_out_as_text(one, two, three):
    for hostile in (one + HOSTILE, two, three + HOSTILE):
        lines = [Line(hostile, ((0, 1, hostile),))]
        chart = read(line_chart(lines, axis(hostile), axis(hostile), name=hostile + "!"))
        bars = read(bar_chart([Bars(hostile, ((0.5, hostile),))], name=hostile + "!"))
        for root in (chart, bars):
            assert {each.tag for each in root.iter()} <= {
                *("svg", "text", "line", "rect", "polyline", "circle", "title")
            }


@given(words)
def test_escaped_text_is_one_line_without_markup(text):
    found = escaped(text + HOSTILE)
    assert not set("<>\"'\n\r\x00\x1b\u202e\ud800") & set(found)
    ElementTree.fromstring(f'<p title="{found}">{found}</p>')
