"""What calls usually use: learned from calls that are alike, never more than their ceiling, and in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.limits.learned import LATEST_CALLS, LEAST_CALLS, MOST_CLASSES, Learned, size_of
from proxy.stores.learned import LearnedUse
from proxy.stores.ledger import SizeClass

ONE, OTHER = SizeClass("fal-ai/one", 0, 7), SizeClass("fal-ai/one", 4, 7)
MOST = {"requests": 1_000_000, "tokens": 64_000_000, "compute_seconds": 60_000_000, "usd": 36_000}
PRICE = 0.0006


def taught(*seconds: int, size: SizeClass = ONE) -> Learned:
    learned = Learned()
    for one in seconds:
        learned.add(size, {"compute_seconds": one})
    return learned


def test_nothing_is_learned_from_fewer_calls() -> None:
    learned = taught(*[5] * (LEAST_CALLS - 1))
    assert learned.needs(ONE, MOST, PRICE) == MOST and not learned.list_changed()
    learned.add(ONE, {"compute_seconds": 5})
    assert learned.needs(ONE, MOST, PRICE) == {**MOST, "compute_seconds": 5, "usd": 1}
    assert learned.needs(OTHER, MOST, PRICE) == MOST


def test_the_learned_use_is_the_99th_percentile_of_the_latest_calls() -> None:
    # The most of fewer than a hundred calls, and the second most of a hundred.
    assert taught(*range(1, 51)).needs(ONE, MOST, PRICE)["compute_seconds"] == 50
    hundred = [1] * 98 + [7_000_000, 9_000_000]
    assert taught(*hundred).needs(ONE, MOST, PRICE)["compute_seconds"] == 7_000_000
    assert taught(*hundred, *[2] * LATEST_CALLS).needs(ONE, MOST, PRICE)["compute_seconds"] == 2


def test_money_follows_the_seconds_at_the_price_of_today() -> None:
    learned = taught(*[2_500_000] * 50)
    assert learned.needs(ONE, MOST, PRICE)["usd"] == 1500
    assert learned.needs(ONE, {**MOST, "usd": 60_000_000}, 1.0)["usd"] == 2_500_000
    assert learned.needs(ONE, {**MOST, "usd": 0}, 0)["usd"] == 0


def test_the_learned_use_is_at_most_the_ceiling_and_never_zero() -> None:
    learned = taught(*[90_000_000] * 50)
    assert learned.needs(ONE, MOST, PRICE) == MOST
    learned = taught(*[0] * 50)
    learned.add(ONE, {"tokens": 3})
    assert learned.needs(ONE, MOST, PRICE) == {**MOST, "compute_seconds": 1, "usd": 1}


def test_calls_without_a_report_of_fal_teach_nothing() -> None:
    learned = Learned()
    for _ in range(LEAST_CALLS):
        learned.add(ONE, {})
        learned.add(None, {"compute_seconds": 1})
    assert learned.needs(ONE, MOST, PRICE) == MOST


def test_the_class_that_is_used_least_is_forgotten_first() -> None:
    learned = taught(*[5] * 50)
    for number in range(MOST_CLASSES - 1):
        learned.add(SizeClass(f"fal-ai/{number}", 0, 0), {"tokens": 1})
    learned.add(ONE, {"compute_seconds": 5})
    learned.add(SizeClass("fal-ai/more", 0, 0), {"tokens": 1})
    assert learned.needs(ONE, MOST, PRICE)["compute_seconds"] == 5
    for number in range(MOST_CLASSES):
        learned.add(SizeClass(f"fal-ai/other-{number}", 0, 0), {"tokens": 1})
    assert learned.needs(ONE, MOST, PRICE) == MOST and not learned.list_changed()
    assert len(learned._classes) == MOST_CLASSES


def test_what_was_learned_before_holds_until_as_much_is_learned_here() -> None:
    learned, before = Learned(), LearnedUse(ONE, 9, 70)
    learned.restore([before, *(LearnedUse(SizeClass("x", n, 0), 1, 1) for n in range(MOST_CLASSES))])
    assert learned.needs(ONE, MOST, PRICE) == {**MOST, "tokens": 9, "compute_seconds": 70, "usd": 1}
    for _ in range(LEAST_CALLS):
        assert learned.needs(ONE, MOST, PRICE)["compute_seconds"] == 70
        learned.add(ONE, {"compute_seconds": 30})
    assert learned.needs(ONE, MOST, PRICE)["compute_seconds"] == 30
    assert learned.list_changed() == [LearnedUse(ONE, 9, 30)]
    learned.restore([before])
    assert learned.needs(ONE, MOST, PRICE)["compute_seconds"] == 30
    learned.mark_saved(learned.list_changed())
    assert not learned.list_changed()


@pytest.mark.parametrize(
    ("body", "picture"),
    [
        ({"image_url": "https://example.com/" + "a" * 4096}, 0),
        ({"image_url": "data:image/png;base64," + "a" * 4074}, 6),
        ({"image_urls": ["data:," + "a" * 2042, "data:," + "a" * 2042, 7, "b" * 4096]}, 6),
        ({"width": 1024, "height": 1024}, 10),
        ({"image_size": {"width": 512, "height": 512}, "width": 4096, "height": 4096}, 9),
        ({"image_size": "square_hd", "width": True, "height": "512"}, 0),
        ({"width": 2**63, "height": 2**63}, 30),
        ({"width": -9, "height": 9}, 0),
        ({"width": 1.5, "height": None, "image_size": None}, 0),
    ],
)
def test_calls_are_alike_by_the_size_of_their_picture(body: dict[str, Any], picture: int) -> None:
    assert size_of("fal-ai/one", body, 64) == SizeClass("fal-ai/one", picture, 7)


def test_calls_are_alike_by_their_token_ceiling() -> None:
    assert [size_of("fal-ai/one", {}, tokens).tokens for tokens in (0, 1, 63, 64, 127, 1_000_000)] == [
        0,
        1,
        6,
        7,
        7,
        20,
    ]
