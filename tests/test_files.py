"""fal's file URLs, and the proxy's own names for them."""

from __future__ import annotations

import pytest

from proxy.upstream.file_urls import FileUrls

FILES = FileUrls("http://127.0.0.1:8788/cdn", "https://ai.example.com")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8788/cdn/files/b/x/a.png?signature=1",
        "https://v3.fal.media/files/b/x/a.png",
        "https://v3b.fal.media/files/b/x/a.png?signature=1",
    ],
)
def test_a_url_of_fals_files_becomes_one_of_the_proxy_and_back(url: str) -> None:
    assert FILES.is_fal_url(url)
    shown = FILES.to_proxy(url)
    assert shown.startswith("https://ai.example.com/fal/cdn/") and FILES.to_fal(shown) == url


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        "",
        "https://evil.example/x",
        "https://v3.fal.media.evil.example/x",
        "http://v3.fal.media/x",
        "https://u@v3.fal.media/x",
        "https://v3.fal.media:8443/x",
        "https://evil-fal.media/x",
        "https://.fal.media/x",
        "https://fal.media/x",
        "https://evil.example\\.fal.media/x",
        "https://[",
        "file:///etc/passwd",
        "http://127.0.0.1:8788/cdnx",
        "http://127.0.0.1:8788/rest/x",
    ],
)
def test_other_urls_are_not_taken_for_fals(url: object) -> None:
    assert not FILES.is_fal_url(url)


def test_proxy_urls_become_fals_wherever_an_input_names_them() -> None:
    shown, fals = "https://ai.example.com/fal/cdn/v3b.fal.media/files/b/x.png", "https://v3b.fal.media/files/b/x.png"
    given = {"image_url": shown, "images": [{"image_url": shown}, shown], "prompt": f"not {shown}", "n": 1}
    meant = {"image_url": fals, "images": [{"image_url": fals}, fals], "prompt": f"not {shown}", "n": 1}
    assert FILES.to_fal(given) == meant


def test_another_host_in_the_path_leads_to_the_cdn_and_no_further() -> None:
    for host in ("evil.example", "fal.media.evil.example", "..", "@evil.example", "V3.FAL.MEDIA"):
        assert FILES.to_fal(f"https://ai.example.com/fal/cdn/{host}/x") == f"http://127.0.0.1:8788/cdn/{host}/x"


def test_an_endless_nest_is_not_followed() -> None:
    nest: object = "https://ai.example.com/fal/cdn/files/x"
    for _ in range(5000):
        nest = [nest]
    assert FILES.to_fal(nest)
