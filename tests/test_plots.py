"""Curves as SVG: well-formed, in the right places, and no point without a logarithm."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from spiketext.plots import log_curves


def test_a_power_law_is_a_straight_line():
    drawn = log_curves("errors < 1 & more", "T", "error", {"a": [(10, 0.1), (100, 0.01), (1000, 0.001)]})
    root = ElementTree.fromstring(drawn)
    assert root[1].text == "errors < 1 & more"
    line = next(node for node in root if node.tag.endswith("polyline"))
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(points)]
    assert steps[0] == pytest.approx(steps[1], abs=0.2) and steps[0][0] > 50 and steps[0][1] > 50
    labels = {node.text for node in root if node.tag.endswith("text")}
    assert {"10", "100", "1000", "0.1", "0.01", "0.001", "T", "error", "a"} <= labels


@pytest.mark.parametrize("curve", [[], [(0, 1)], [(1, 0)], [(1, float("nan"))]])
def test_what_has_no_logarithm_is_refused(curve):
    with pytest.raises(ValueError, match="expected points above 0"):
        log_curves("t", "x", "y", {"a": curve})
