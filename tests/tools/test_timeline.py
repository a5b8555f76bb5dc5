"""The picture in docs/offload.md is what the simulator says today."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tools.timeline import COLOURS, TARGET, drawing

NUMBER = re.compile(r"-?\d+\.\d+")


def test_the_picture_is_up_to_date() -> None:
    drawn, kept = drawing(), TARGET.read_text(encoding="utf-8")
    assert NUMBER.sub("", drawn) == NUMBER.sub("", kept), "run: python tools/timeline.py"
    # Another processor's logarithms may differ in the last digit.
    pairs = zip(NUMBER.findall(drawn), NUMBER.findall(kept), strict=True)
    assert all(abs(float(one) - float(other)) < 0.2 for one, other in pairs)


def test_every_kind_of_work_is_in_it() -> None:
    root = ElementTree.fromstring(drawing())
    fills = [one.get("fill") for one in root.iter("{http://www.w3.org/2000/svg}rect")]
    for colour in COLOURS.values():
        assert fills.count(colour) > 2  # beside the legend
