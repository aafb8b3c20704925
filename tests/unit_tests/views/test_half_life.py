"""The picture of half-lives: every layer in it, and readable to a thousand of channels."""

from __future__ import annotations

import pytest
import torch

from langchain_rwkv_state.runtime import HalfLife
from langchain_rwkv_state.views.plots.half_life_plot import half_life_picture


def found(layers, channels=64):
    spans = torch.logspace(-0.5, 4, channels, dtype=torch.float64)
    return HalfLife("5.2", (spans,) * layers, (spans[::32],) * layers)


def test_it_shows_name_source_and_layers(tmp_path):
    text = half_life_picture(found(3), tmp_path / "a.svg", name="my model").read_text()
    for label in ("my model, RWKV-5.2: read off the weights", "layer", "half-life, tokens"):
        assert label.partition(":")[0] in text
    assert "stands for that and more" not in text


def test_many_layers_and_endless_spans_fit(tmp_path):
    spans = found(61, 4096)
    spans.layers[3][5] = torch.inf
    text = half_life_picture(spans, tmp_path / "a.svg", name="large").read_text()
    assert "1,000,000 stands for that and more" in text
    picture = half_life_picture(spans, tmp_path / "a.png", name="large")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_is_there_stays(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is there already"):
        half_life_picture(found(1), tmp_path / "a.png", name="m")
    assert (tmp_path / "a.png").read_bytes() == b"mine"
