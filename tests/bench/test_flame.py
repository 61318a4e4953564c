"""Samples of the proxy as shares of its packages, and as a picture."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.bench.flame import EVENT_LOOP, read_stacks, shares_of, tree_of
from tests.bench.flame_graph import WIDTH, draw

ROOT = "<module> (proxy/__main__.py:5);Runner.run (asyncio/runners.py:118)"
SAMPLES = [
    f"{ROOT};run (proxy/calls/models.py:84);commit (proxy/stores/batching.py:10) 60",
    f"{ROOT};run (proxy/calls/models.py:90);replace (dataclasses.py:7) 20",
    f"{ROOT} 20",
    "run (threading.py:982);_worker (concurrent/futures/thread.py:81) 500",
]


def test_a_sample_belongs_to_the_innermost_package() -> None:
    assert shares_of(read_stacks(SAMPLES)) == {"proxy/stores": 0.6, "proxy/calls": 0.2, EVENT_LOOP: 0.2}


def test_a_frame_is_as_wide_as_its_share() -> None:
    picture = ElementTree.fromstring(draw(tree_of(read_stacks(SAMPLES))))
    svg = "{http://www.w3.org/2000/svg}"
    widths = {one.findtext(f"{svg}title"): float(one[1].get("width", 0)) for one in picture.iter(f"{svg}g")}
    assert {title: round((width + 0.5) / WIDTH, 2) for title, width in widths.items()} == {
        "a run: 100.0%": 1.0,
        "run (proxy/calls/models.py): 80.0%": 0.8,
        "commit (proxy/stores/batching.py): 60.0%": 0.6,
        "replace (dataclasses.py): 20.0%": 0.2,
    }
