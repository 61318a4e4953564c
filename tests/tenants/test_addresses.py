"""The hosts that a URL in an input may name, and the form in which it is sent."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.catalog import built_in
from proxy.errors import InvalidInput
from proxy.limits.inputs import check_input
from proxy.tenants.addresses import MAX_URL_LENGTH, public_url
from tests.limits.input_checks import FREE, OWN_FILES, checked, each, problems
from tests.support.images import PIXEL
from tests.support.limited import NEXT

PUBLIC = each("""
https://example.com/cat.png
HTTPS://EXAMPLE.COM/cat.png
http://example.com:8080/cat.png?size=1#top
https://example.com./cat.png
https://1.1.1.1/cat.png
https://[2606:4700:4700::1111]/cat.png
https://[64:ff9b::101:101]/cat.png
https://localhost.example.com/cat.png
https://10.0.0.1.example.com/cat.png
https://xn--mnchen-3ya.example/katze.png
https://my_bucket.s3.example.com/katze-ü.png
https://example.com/10.0.0.1
https://example.com/a%20cat.png
https://example.com/@home
""")

#: Ambiguous URLs, and the form that is sent instead.
REWRITTEN = {
    "https://16843009/cat.png": "https://1.1.1.1/cat.png",
    "https://0x01010101:8443/cat.png": "https://1.1.1.1:8443/cat.png",
    "https://010.010.010.010/cat.png": "https://8.8.8.8/cat.png",
    "https://1.257/cat.png": "https://1.0.1.1/cat.png",
    "https://１．１．１．１/cat.png": "https://1.1.1.1/cat.png",
    "https://①.①.①.①/cat.png?a=1#b": "https://1.1.1.1/cat.png?a=1#b",
    "https://münchen.example/katze.png": "https://xn--mnchen-3ya.example/katze.png",
    "https://MÜNCHEN。example/katze.png": "https://xn--mnchen-3ya.example/katze.png",
    "https://faß.example/": "https://xn--fa-hia.example/",
    "https://ｅｘａｍｐｌｅ.com/": "https://example.com/",
    " https://example.com/cat.png": "https://example.com/cat.png",
    "\x00\t https://example.com/cat.png \r\n": "https://example.com/cat.png",
    f" {PIXEL}\n": PIXEL,
    f"\n{OWN_FILES}/files/cat.png": f"{OWN_FILES}/files/cat.png",
}

NOT_PUBLIC = each("""
http://127.0.0.1/ https://127.0.0.1/ HTTP://127.0.0.1/ http://127.0.0.1:80/ http://127.255.255.254/
http://127.0.0.1./ http://127.0.0.1../ http://127.1/ http://127.0.1/ http://0/ http://0.0.0.0/ http://0x0/
http://2130706433/ http://0x7f000001/ http://0X7F000001/ http://0x7f.0.0.1/ http://0x7f.1/ http://017700000001/
http://0177.0.0.1/ http://0177.1/ http://127.0.0.0x1/ http://00000177.0.0.1/
http://10.0.0.1/ http://10.1/ http://167772161/ http://0xa000001/ http://012.0.0.1/
http://172.16.0.1/ http://172.31.255.255/ http://192.168.0.1/ http://192.168.1/ http://0300.0250.0.1/
http://169.254.169.254/ http://2852039166/ http://0xA9FEA9FE/ http://0251.0376.0251.0376/ http://169.254.43518/
http://100.64.0.1/ http://198.18.0.1/ http://192.0.2.1/ http://203.0.113.1/ http://224.0.0.1/ http://239.255.255.250/
http://240.0.0.1/ http://255.255.255.255/
http://[::1]/ http://[::]/ http://[0:0:0:0:0:0:0:1]/ http://[0000:0000::0001]:8080/ http://[::1]./
http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::ffff:10.0.0.1]/ http://[::FFFF:A9FE:A9FE]/
http://[0:0:0:0:0:ffff:192.168.0.1]/ http://[::127.0.0.1]/ http://[::10.0.0.1]/
http://[64:ff9b::127.0.0.1]/ http://[64:ff9b::a9fe:a9fe]/ http://[64:ff9b:1::1]/ http://[2002:7f00:1::]/
http://[2002:a00:1::1]/ http://[2001:0:7f00:1::]/ http://[2001::f5ff:fffe]/
http://[fe80::1]/ http://[fc00::1]/ http://[fd12:3456::1]/
http://[ff02::1]/ http://[ff0e::1]/ http://[2001:db8::1]/
http://localhost/ http://LOCALHOST/ http://localhost./ http://LocalHost:8080/ http://me.localhost/ http://me.localhost./
http://１２７.0.0.1/ http://127。0。0。1/ http://127．0．0．1/ http://①②⑦.0.0.1/ http://ｌｏｃａｌｈｏｓｔ/ http://ⅼocalhost/
http://①②⑦.⓪.⓪.①/ http://１０。０。０。１/ http://０x7f.1/ http://printer.local/ http://metadata.google.internal/ http://redis:6379/
http://nas.home.arpa/ http://localhost.localdomain/ http://ｐｒｉｎｔｅｒ.ｌｏｃａｌ/ http://012.0x0.0.1/
""")

NO_URL = each("""
http: http:// http:/// http:///127.0.0.1/ http:127.0.0.1 http:/127.0.0.1 https://?q http://#a http://:80/ http://[::1
http://[]/ http://[:::1]/ http://127.0.0.1\\@example.com/ https://example.com\\@127.0.0.1/ http://127%2e0.0.1/
http://%31%32%37.0.0.1/ http://loc%61lhost/ http://[fe80::1%25eth0]/ http://[fe80::1%eth0]/
https://example.com%00.127.0.0.1/ http://1.2.3.4.5/ http://256.256.256.256/ http://4294967296/ http://09.1.1.1/
http://example.0x/ http://exa$mple.com/ http://exa..mple.com/ http://[1.1.1.1]/ http://[v1.example.com]/ http://example.com:99999/
http://example.com:x/ http://☃.example/ http://example.com／@10.0.0.1/ http://[2606:4700::1%25eth0]/
""")

CREDENTIALS = each("""
http://user@example.com/ http://user:password@example.com/ http://@example.com/ http://:@example.com/
http://example.com@127.0.0.1/ https://example.com:443@10.0.0.1/ https://v3.fal.media@10.0.0.1/
""")

NO_SCHEME = each("""
file:///etc/passwd FILE:///etc/passwd file:cat.png ftp://example.com/cat.png gopher://127.0.0.1/ s3://bucket/cat.png
gs://bucket/cat.png unix:/var/run/docker.sock blob:https://example.com/1 javascript:alert(1) jar:http://example.com!/
//example.com/cat.png //127.0.0.1/ example.com/cat.png 127.0.0.1 cat.png /etc/passwd ../cat.png view-source:http://a/
httpx://example.com/ https+unix://x/ ws://example.com/ .http://example.com/ :http://example.com/
""")

SPACED = [
    " http://127.0.0.1/", "\thttp://127.0.0.1/", "\nhttp://127.0.0.1/", "http://127.0.0.1 /", "http://127.0.0.1\t/",
    "http://\n127.0.0.1/", "ht\ntp://127.0.0.1/", "http://example.com/\r\nHost: 127.0.0.1", "http://127.0.0.1\x00/",
    "http://10.0.0.1 .example.com/", "http://127.0.0.1\u200b/", "http://127.0.0.1\u00a0/", "http://exa\u00admple.com/",
]  # fmt: skip


@pytest.mark.parametrize("url", PUBLIC)
def test_a_public_address_is_passed_on_unchanged(url: str) -> None:
    assert checked({"image_url": url})["image_url"] == url


def test_a_url_that_is_too_long_is_refused() -> None:
    url = "https://example.com/".ljust(MAX_URL_LENGTH, "a")
    assert checked({"image_url": url})["image_url"] == url
    assert problems({"image_url": url + "a"}) == [(["body", "image_url"], "image_url")]
    assert problems({"image_url": f"https://{'a.' * 127}example.com/"}) == [(["body", "image_url"], "image_url")]


@pytest.mark.parametrize(("url", "sent"), REWRITTEN.items())
def test_an_ambiguous_url_is_sent_in_one_clear_form(url: str, sent: str) -> None:
    assert checked({"image_url": url})["image_url"] == sent


@pytest.mark.parametrize("url", [*NOT_PUBLIC, *NO_URL, *CREDENTIALS, *NO_SCHEME, *SPACED, "data", "https"])
def test_any_other_address_is_refused(url: str) -> None:
    assert (["body", "image_url"], "image_url") in problems({"image_url": url})


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (NOT_PUBLIC, "must lead to a public address"),
        (NO_URL, "not a URL"),
        (CREDENTIALS, "must not carry credentials"),
        (NO_SCHEME, "with one of these schemes: data, http, https"),
        ([url for url in SPACED if url.startswith("http://")], "a space, a backslash or an invisible character"),
        ([" http://127.0.0.1/", "http://127.0.0.1/\n"], "must lead to a public address"),
        (["data:image/png;base64,ä"], "ASCII characters only"),
    ],
)
def test_a_refused_url_names_its_own_reason(urls: list[str], words: str) -> None:
    for url in urls:
        with pytest.raises(InvalidInput) as refused:
            checked({"image_url": url})
        assert words in refused.value.message, url


def test_uploaded_files_are_always_allowed() -> None:
    own = {"image_url": f"{OWN_FILES}/files/cat.png"}
    only_data = FREE.model_copy(update={"image_schemes": frozenset({"data"})})
    assert checked(own, only_data)["image_url"] == own["image_url"]
    near = each(
        ".evil.example/cat.png :444/cat.png @a/ /files/../cat.png /files/.. /%2E%2e/cat.png /a/./b /a\\..\\b /ä"
    )
    for url in [OWN_FILES, OWN_FILES.upper() + "/a", *(OWN_FILES + rest for rest in near), f"{OWN_FILES}/a b"]:
        assert problems({"image_url": url}, only_data) == [(["body", "image_url"], "image_url")], url


def test_uploaded_files_do_not_open_other_paths_of_their_host() -> None:
    """The sandbox keeps its files on an address that is not public, next to other things."""
    own = "http://127.0.0.1:8788/cdn"
    known = built_in().get(NEXT)
    assert known is not None
    body = {"prompt": "?", "image_url": f"{own}/files/cat.png"}
    assert check_input(known, FREE, body, own_files=own) == body
    for url in (f"{own}/../control", f"{own}/%2e%2e/control", f"{own}/a/../../control", f"{own}x"):
        with pytest.raises(InvalidInput, match="public address"):
            check_input(known, FREE, {**body, "image_url": url}, own_files=own)


@pytest.mark.parametrize("scheme", ["http", "https", "data"])
def test_a_plan_names_the_schemes(scheme: str) -> None:
    urls = {"http": "http://example.com/a.png", "https": "https://example.com/a.png", "data": PIXEL}
    limits = FREE.model_copy(update={"image_schemes": frozenset({scheme})})
    assert checked({"image_url": urls.pop(scheme)}, limits)
    for url in urls.values():
        assert problems({"image_url": url}, limits) == [(["body", "image_url"], "image_url")]


def test_every_picture_of_a_list_is_checked() -> None:
    good = {"image_url": "https://example.com/a.png"}
    assert checked({"images": [good, good]})["images"] == [good, good]
    assert problems({"images": [good, {"image_url": "http://10.0.0.1/"}, "text", {"image_url": "file:///x"}, {}]}) == [
        (["body", "images", 1, "image_url"], "image_url"),
        (["body", "images", 3, "image_url"], "image_url"),
    ]


def test_a_data_uri_that_is_too_large_is_refused() -> None:
    limits = FREE.model_copy(update={"max_data_uri_bytes": len(PIXEL)})
    assert checked({"image_url": PIXEL}, limits)["image_url"] == PIXEL
    assert problems({"image_url": PIXEL + "A"}, limits) == [(["body", "image_url"], "image_url")]
    assert problems({"images": [{"image_url": PIXEL + "A"}]}, limits)


# --- against an independent implementation

#: IPv4 that no host on the internet has (https://www.iana.org/assignments/iana-ipv4-special-registry).
SPECIAL = [
    ipaddress.ip_network(text)
    for text in each("""
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.2.0/24 192.168.0.0/16
    198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    """)
]
#: Globally reachable or not, depending on the edition of that registry.
DISPUTED = [ipaddress.ip_network(text) for text in each("192.0.0.0/24 192.88.99.0/24")]
_DIGITS = {digit: [digit, chr(0xFF10 + int(digit)), chr(0x1D7CE + int(digit))] for digit in "0123456789"}


def _four(number: int) -> list[int]:
    return list(number.to_bytes(4, "big"))


@st.composite
def ipv4_spellings(draw: st.DrawFn) -> tuple[ipaddress.IPv4Address, str]:
    """An address, and one of the ways to write it that C libraries or browsers understand."""
    number = draw(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([int(net[1]) for net in SPECIAL])))
    octets = _four(number)
    parts = draw(st.integers(1, 4))
    values = [*octets[: parts - 1], int.from_bytes(bytes(octets[parts - 1 :]), "big")]
    forms = [draw(st.sampled_from(["{}", "0{:o}", "0x{:x}", "0X{:X}", "0x00{:x}"])).format(one) for one in values]
    dot = draw(st.sampled_from([".", "。", "．", "｡"]))
    text = dot.join(forms) + draw(st.sampled_from(["", "."]))
    if draw(st.booleans()):
        text = "".join(draw(st.sampled_from(_DIGITS.get(character, [character]))) for character in text)
    return ipaddress.IPv4Address(number), text


@given(ipv4_spellings())
def test_every_spelling_of_an_ipv4_address_is_one_address(spelled: tuple[ipaddress.IPv4Address, str]) -> None:
    address, text = spelled
    if any(address in net for net in DISPUTED):
        return
    if any(address in net for net in SPECIAL):
        with pytest.raises(ValueError, match="public address"):
            public_url(f"http://{text}:8080/a?b=1")
    else:
        assert public_url(f"http://{text}:8080/a?b=1") in (
            f"http://{address}:8080/a?b=1",
            f"http://{address}.:8080/a?b=1",
        )


_NASTY = st.text(
    st.one_of(st.sampled_from("0123456789abcxloh.:/@[]%\\#?& \t\n-_①。⒈ｌ\u00ad\u200b\u202e"), st.characters()),
    max_size=40,
)


@given(_NASTY, st.sampled_from(["http://", "https://", "HTTP://"]))
@example("127.0.0.1", "http://")
@example("①②⑦。1", "http://")
def test_a_sent_url_names_one_public_host(rest: str, scheme: str) -> None:
    """Any text is refused, or the URL that is sent is unambiguous and passes the check again unchanged."""
    try:
        sent = public_url(scheme + rest)
    except ValueError:
        return
    host = urlsplit(sent).hostname or ""
    assert host.isascii() and host and public_url(sent) == sent
    assert "@" not in urlsplit(sent).netloc
    try:
        address = ipaddress.ip_address(socket.inet_aton(host.rstrip(".")) if ":" not in host else host)
    except OSError:
        assert "." in host and not host.rstrip(".").rpartition(".")[2].isdigit()
    else:
        assert address.is_global and not address.is_multicast
