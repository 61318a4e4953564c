"""The hosts that a plan allows for pictures in an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.errors import InvalidInput
from proxy.settings import SettingsError
from proxy.tenants.image_hosts import MOST_PATTERNS, ImageHosts
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import Plan
from tests.limits.input_checks import FREE, OWN_FILES, checked, each, problems
from tests.support.images import PIXEL
from tests.support.limited import Client, assert_refused_with, limited_proxy, plan, posts
from tests.support.sandbox import SandboxControl

REFUSED = [(["body", "image_url"], "image_url")]


def limits(**lists: list[str]) -> Plan:
    return FREE.model_copy(update={"image_hosts": ImageHosts.model_validate(lists)})


ALLOWED = each("""
https://img.example.com/cat.png HTTPS://IMG.Example.COM/cat.png https://img.example.com:8443/cat.png
https://img.example.com./cat.png https://ｉｍｇ.example.com/cat.png https://a.cdn.example/cat.png
https://a.b.c.cdn.example/cat.png https://xn--mnchen-3ya.example/cat.png https://münchen.example/cat.png
https://MÜNCHEN。example/cat.png https://1.1.1.1/cat.png https://0x01010101/cat.png https://16843009/cat.png
https://1.1.1.1./cat.png https://[2606:4700:4700::1111]/cat.png https://[2606:4700:4700:0:0:0:0:1111]:444/cat.png
""")
OTHERS = each("""
https://example.com/cat.png https://x.img.example.com/cat.png https://img.example.com.evil.example/cat.png
https://evilimg.example.com/cat.png https://cdn.example/cat.png https://evilcdn.example/cat.png
https://1.1.1.2/cat.png https://[2606:4700:4700::1112]/cat.png https://evil.example/?img.example.com
https://evil.example/#.cdn.example https://evil.example/a.cdn.example https://xn--mnchen-3ya.example.evil.example/
https://[64:ff9b::101:101]/cat.png https://evilfal.media/cat.png https://fal.media.evil.example/cat.png
""")
LISTED = ["img.example.com", "*.cdn.example", "München.example", "1.1.1.1", "[2606:4700:4700:0::1111]"]


@pytest.mark.parametrize("url", ALLOWED)
def test_a_listed_host_is_allowed_in_every_spelling(url: str) -> None:
    assert checked({"image_url": url}, limits(allow=LISTED))
    assert problems({"image_url": url}, limits(deny=LISTED)) == REFUSED
    assert problems({"image_url": url}, limits(allow=LISTED, deny=LISTED)) == REFUSED


@pytest.mark.parametrize("url", OTHERS)
def test_any_other_host_is_refused(url: str) -> None:
    assert problems({"image_url": url}, limits(allow=LISTED)) == REFUSED


def test_a_deny_list_leaves_other_hosts_allowed() -> None:
    for url in OTHERS:
        if "64:ff9b" not in url:
            assert checked({"image_url": url}, limits(deny=LISTED))


def test_a_denied_address_is_denied_in_its_ipv6_form_too() -> None:
    for url in each("https://[64:ff9b::101:101]/a.png https://[2002:101:101::]/a.png"):
        assert checked({"image_url": url}, limits(deny=["1.1.1.2"]))
        assert problems({"image_url": url}, limits(deny=["1.1.1.1"])) == REFUSED


@pytest.mark.parametrize(
    "url", [PIXEL, f"{OWN_FILES}/files/cat.png", "https://v3b.fal.media/a.png", "https://fal.media/a.png"]
)
def test_uploads_and_data_uris_are_always_allowed(url: str) -> None:
    assert checked({"image_url": url}, limits(allow=["img.example.com"], deny=["*.fal.media", "fal.media"]))


def test_a_private_host_is_refused_even_if_it_is_listed() -> None:
    listed = limits(allow=["10.0.0.1", "*.local", "img.example.com"])
    for url in each(
        "https://10.0.0.1/ https://printer.local/ https://user@img.example.com/ https://img.example.com\\@evil.example/"
    ):
        assert problems({"image_url": url}, listed) == REFUSED


def test_every_url_of_an_input_is_checked() -> None:
    one, other = {"image_url": "https://img.example.com/"}, {"image_url": "https://evil.example/"}
    assert problems(
        {"images": [one, other], "audio_url": "https://evil.example/"}, limits(allow=["img.example.com"])
    ) == [
        (["body", "images", 1, "image_url"], "image_url"),
        (["body", "audio_url"], "url"),
    ]


def test_the_refusal_names_the_host() -> None:
    with pytest.raises(InvalidInput, match=r"does not allow URLs on the host evil\.example; upload the file"):
        checked({"image_url": "https://EVIL.example:444/a.png?key=secret"}, limits(allow=["img.example.com"]))


WRONG = each("""
https://img.example.com img.example.com:443 img.example.com/ user@img.example.com *.*.example.com img*.example.com
a.*.example.com ** * *. . .. *.1.1.1.1 *.2606:4700::1 [2606:4700::1 img..example.com 1.1.1.1.1 ☃.example
img%2eexample.com
""")


@pytest.mark.parametrize("pattern", [*WRONG, "", "img example.com", "a" * 254])
@pytest.mark.parametrize("kind", ["allow", "deny"])
def test_an_invalid_host_is_refused_in_the_plan_file(tmp_path: Path, pattern: str, kind: str) -> None:
    with pytest.raises(SettingsError) as refused:
        _read(tmp_path, f"{{{kind}: ['{pattern}']}}")
    (problem,) = refused.value.problems
    assert f"plans.team.image_hosts.{kind}" in problem


@pytest.mark.parametrize(
    "lists", ["{}", "{allow: []}", "{deny: []}", "{allow: null}", "{alow: [example.com]}", "[example.com]"]
)
def test_lists_without_a_host_are_refused(tmp_path: Path, lists: str) -> None:
    with pytest.raises(SettingsError, match=r"plans\.team\.image_hosts"):
        _read(tmp_path, lists)


def test_a_list_has_a_maximum_length() -> None:
    most = [f"a{at}.example" for at in range(MOST_PATTERNS)]
    for kind in ("allow", "deny"):
        ImageHosts.model_validate({kind: most})
        with pytest.raises(ValidationError, match="too_long"):
            ImageHosts.model_validate({kind: [*most, "b.example"]})


def _read(folder: Path, image_hosts: str) -> None:
    text = f"plans: {{team: {{endpoints: [fal-ai/llava-next], image_hosts: {image_hosts}}}}}\ntenants: []\n"
    (folder / "plans.yaml").write_text(text)
    read_file(folder / "plans.yaml")


def test_a_plan_without_lists_is_stored_in_the_older_form() -> None:
    """So that an older version can read it."""
    assert "image_hosts" not in FREE.model_dump(mode="json")
    listed = limits(allow=["*.B.example", "a.example"], deny=["c.example"])
    written = listed.model_dump(mode="json")
    assert written["image_hosts"] == {"allow": ["*.b.example", "a.example"], "deny": ["c.example"]}
    assert Plan.model_validate(written) == listed


def test_a_refused_picture_costs_nothing_on_both_surfaces(sandbox: SandboxControl, tmp_path: Path) -> None:
    plans: dict[str, Any] = {"strict": plan(image_hosts={"allow": ["*.acme.example"]})}
    with limited_proxy(sandbox, tmp_path, plans) as stack, Client(stack, stack.token(tenant="strict")) as alice:
        for call in (alice.run, alice.submit):
            body = assert_refused_with(call(image_url="https://evil.example/cat.png"), 422, "invalid_input")
            assert body["detail"][0]["loc"] == ["body", "image_url"]
        assert not posts(sandbox)
        assert alice.run(image_url=PIXEL).status_code == 200


def test_pixels_are_limited_only_where_pictures_are_rewritten(tmp_path: Path) -> None:
    text = "plans: {{team: {{endpoints: [fal-ai/llava-next], {limits}}}}}\ntenants: []\n"
    for limits, words in (
        ("max_pixels: 100", "max_pixels needs strip_metadata: true"),
        ("strip_metadata: true, max_pixels: 0", "greater than or equal to 1"),
        ("strip_metadata: true, max_pixels: true", "must not be true or false"),
    ):
        (tmp_path / "plans.yaml").write_text(text.format(limits=limits))
        with pytest.raises(SettingsError, match=words):
            read_file(tmp_path / "plans.yaml")
    written = FREE.model_dump(mode="json")
    assert "strip_metadata" not in written and "max_pixels" not in written
    limits = {"strip_metadata": True, "max_pixels": 9}
    assert Plan.model_validate({**written, **limits}).model_dump(mode="json") == {**written, **limits}
