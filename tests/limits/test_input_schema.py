"""What an endpoint's own schema makes of an input: which strings are URLs, which numbers are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from proxy.catalog import MAX_PROBLEMS, endpoint_from
from proxy.errors import BadRequest, InvalidInput
from proxy.limits.inputs import MAX_DEPTH, MAX_URLS, check_input
from tests.limits.input_checks import FREE, OWN_FILES

OPERATORS_OWN = {
    "type": "object",
    "properties": {
        "clip": {"type": "string", "format": "uri"},
        "frames": {"type": "array", "items": {"$ref": "#/$defs/frame"}},
        "mask": {"anyOf": [{"$ref": "#/$defs/frame"}, {"type": "null"}]},
        "extra": {"type": "object", "additionalProperties": {"format": "uri"}},
        "steps": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "scale": {"type": "number"},
        "size": {"allOf": [{"$ref": "#/$defs/size"}]},
        "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}},
    },
    "$defs": {
        "frame": {"properties": {"at": {"type": "string", "format": "uri"}, "next": {"$ref": "#/$defs/frame"}}},
        "size": {"properties": {"width": {"type": ["integer", "string"]}, "ratio": {"type": "number"}}},
    },
}
OWN = endpoint_from({"id": "fal-ai/own", "input": OPERATORS_OWN})


def own(**body: Any) -> dict[str, Any]:
    return check_input(OWN, FREE, body, own_files=OWN_FILES)


def problems_of(**body: Any) -> list[tuple[list[str | int], str]]:
    with pytest.raises(InvalidInput) as refusal:
        own(**body)
    return [(one["loc"][1:], one["type"]) for one in refusal.value.details]


@pytest.mark.parametrize(
    ("where", "body"),
    [
        (["image_url"], {"image_url": "{}"}),
        (["image_urls", 1], {"image_urls": ["https://example.com/a.png", "{}"]}),
        (["video_url"], {"video_url": "{}"}),
        (["AUDIO_URL"], {"AUDIO_URL": "{}"}),
        (["maskUrl"], {"maskUrl": "{}"}),
        (["url"], {"url": "{}"}),
        (["file_uri"], {"file_uri": "{}"}),
        (["loras", 0, "url"], {"loras": [{"url": "{}", "text": "http://10.0.0.1/"}]}),
        (["image_url", "url"], {"image_url": {"url": "{}", "detail": "low"}}),
        (["tile_urls", 0, 0], {"tile_urls": [["{}"]]}),
        (["clip"], {"clip": "{}"}),
        (["frames", 0, "next", "at"], {"frames": [{"next": {"at": "{}"}}]}),
        (["mask", "at"], {"mask": {"at": "{}"}}),
        (["extra", "anything"], {"extra": {"anything": "{}"}}),
    ],
)
def test_every_url_that_is_fetched_is_judged(where: list[str | int], body: dict[str, Any]) -> None:
    def fill(url: str) -> Any:
        return json.loads(json.dumps(body, ensure_ascii=False).replace("{}", url))

    kind = "image_url" if "image" in str(where[0]) else "url"
    assert problems_of(**fill("http://①②⑦.0.0.1/")) == [(where, kind)]
    assert problems_of(**fill("file:///etc/passwd")) == [(where, kind)]
    sent = own(**fill("http://ｅxample.com/"))
    assert sent == fill("http://example.com/") and own(**sent) is not None


@pytest.mark.parametrize("name", ["curl", "urls_seen", "image", "prompt", "nouri", "blurls"])
def test_other_text_may_name_any_address(name: str) -> None:
    assert own(**{name: "http://10.0.0.1/"}) == {name: "http://10.0.0.1/"}


def test_the_number_of_urls_in_an_input() -> None:
    url = "https://example.com/a.png"
    assert own(image_urls=[url] * MAX_URLS)
    assert problems_of(image_urls=[url] * 100_000) == [(["image_urls", MAX_URLS], "too_many_urls")]


def test_the_depth_of_an_input() -> None:
    def nested(levels: int) -> Any:
        return {"a": nested(levels - 1)} if levels else "text"

    assert own(**nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    deep = json.loads('{"a":' * 900 + "[1.0]" + "}" * 900)
    with pytest.raises(BadRequest, match="64 levels"):
        own(**deep)


def test_a_bounded_number_of_problems_is_listed() -> None:
    assert len(problems_of(frames=[{"at": "no", "image_url": "no"}] * 5_000)) <= MAX_PROBLEMS


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"steps": 64.0}, {"steps": 64}),
        ({"steps": -3.0, "scale": 2.0}, {"steps": -3, "scale": 2.0}),
        ({"size": {"width": 512.0, "ratio": 1.0}}, {"size": {"width": 512, "ratio": 1.0}}),
        ({"sizes": [{"width": 1e3}, {"width": "wide"}]}, {"sizes": [{"width": 1000}, {"width": "wide"}]}),
        ({"max_tokens": 64.0, "max_new_tokens": 1e2}, {"max_tokens": 64, "max_new_tokens": 100}),
        ({"seed": 9007199254740993, "steps": None}, {"seed": 9007199254740993, "steps": None}),
    ],
)
def test_a_whole_number_leaves_without_its_point(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert json.dumps(own(**given)) == json.dumps(sent)


@pytest.mark.parametrize("number", [1e300, -1e300, 2.0**63, -(2.0**63)])
def test_a_whole_number_that_no_model_can_mean(number: float) -> None:
    assert problems_of(steps=number) == [(["steps"], "int_parsing_size")]


def test_a_check_does_not_change_its_input() -> None:
    body = {"sizes": [{"width": 1.0}], "frames": [{"at": "https://ü.example/"}]}
    before = json.dumps(body)
    assert own(**body) != body and json.dumps(body) == before


_NUMBERS = st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False))
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["steps", "size", "width"]), inner),
    max_leaves=20,
)


@for_all(st.dictionaries(st.sampled_from(["steps", "scale", "size", "sizes", "seed"]), _JSON))
def test_numbers_keep_their_value(body: dict[str, Any]) -> None:
    """Each number that passes keeps its value; only its decimal point may go."""
    try:
        sent = own(**body)
    except InvalidInput:
        return
    assert sent == body
    assert not isinstance(sent.get("steps"), float) or not sent["steps"].is_integer()
