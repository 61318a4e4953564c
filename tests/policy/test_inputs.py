"""What may go into a model: token and prompt ceilings, and where a picture's address may lead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.catalog import TOKEN_FIELDS, built_in, endpoint_from
from proxy.errors import InvalidInput
from proxy.policy.inputs import check_input
from proxy.policy.plans import Plan
from tests.support.limited import COUNTING, NEXT, PIXEL, Person, limited_proxy, per, plan, posts, refusal
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

OWN_FILES = "https://v3.fal.media"
LLAMA = "fal-ai/llava-llama3-8b-v11"
FREE = Plan(endpoints=frozenset(built_in().ids()))


def checked(body: dict[str, Any], limits: Plan = FREE, endpoint: str = NEXT) -> dict[str, Any]:
    known = built_in().get(endpoint)
    assert known is not None
    return check_input(known, limits, {"image_url": PIXEL, "prompt": "?", **body}, own_files=OWN_FILES)


def problems(body: dict[str, Any], limits: Plan = FREE) -> list[tuple[list[str | int], str]]:
    with pytest.raises(InvalidInput) as refused:
        checked(body, limits)
    return [(one["loc"], one["type"]) for one in refused.value.details]


def each(text: str) -> list[str]:
    return text.split()


# --- where a picture's address may lead

PUBLIC = each("""
https://example.com/cat.png
HTTPS://EXAMPLE.COM/cat.png
http://example.com:8080/cat.png?size=1#top
https://example.com./cat.png
https://1.1.1.1/cat.png
https://16843009/cat.png
https://0x01010101/cat.png
https://[2606:4700:4700::1111]/cat.png
https://[64:ff9b::101:101]/cat.png
https://localhost.example.com/cat.png
https://10.0.0.1.example.com/cat.png
https://münchen.example/katze.png
https://example.com/10.0.0.1
https://example.com/a%20cat.png
https://example.com/@home
""")

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
""")

NO_URL = each("""
http: http:// http:/// http:///127.0.0.1/ http:127.0.0.1 http:/127.0.0.1 https://?q http://#a http://:80/ http://[::1
http://[]/ http://[:::1]/ http://127.0.0.1\\@example.com/ https://example.com\\@127.0.0.1/ http://127%2e0.0.1/
http://%31%32%37.0.0.1/ http://loc%61lhost/ http://[fe80::1%25eth0]/ http://[fe80::1%eth0]/
https://example.com%00.127.0.0.1/
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
def test_a_public_address_is_let_through_as_it_is(url: str) -> None:
    assert checked({"image_url": url})["image_url"] == url


@pytest.mark.parametrize("url", [*NOT_PUBLIC, *NO_URL, *CREDENTIALS, *NO_SCHEME, *SPACED, "data", "https"])
def test_no_other_address_is(url: str) -> None:
    assert (["body", "image_url"], "image_url") in problems({"image_url": url})


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (NOT_PUBLIC, "must lead to a public address"),
        (NO_URL, "not a URL"),
        (CREDENTIALS, "must not carry credentials"),
        (NO_SCHEME, "with one of these schemes: data, http, https"),
    ],
)
def test_each_is_refused_for_its_own_reason(urls: list[str], words: str) -> None:
    for url in urls:
        with pytest.raises(InvalidInput) as refused:
            checked({"image_url": url})
        assert words in refused.value.message, url


def test_uploaded_files_are_always_let_through() -> None:
    own = {"image_url": f"{OWN_FILES}/files/cat.png"}
    only_data = FREE.model_copy(update={"image_schemes": frozenset({"data"})})
    assert checked(own, only_data)["image_url"] == own["image_url"]
    for near in (f"{OWN_FILES}", f"{OWN_FILES}.evil.example/cat.png", f"{OWN_FILES}:444/cat.png", f"{OWN_FILES}@a/"):
        assert problems({"image_url": near}, only_data) == [(["body", "image_url"], "image_url")]


@pytest.mark.parametrize("scheme", ["http", "https", "data"])
def test_a_plan_names_the_schemes(scheme: str) -> None:
    urls = {"http": "http://example.com/a.png", "https": "https://example.com/a.png", "data": PIXEL}
    limits = FREE.model_copy(update={"image_schemes": frozenset({scheme})})
    assert checked({"image_url": urls.pop(scheme)}, limits)
    for url in urls.values():
        assert problems({"image_url": url}, limits) == [(["body", "image_url"], "image_url")]


def test_every_picture_of_a_list_is_looked_at() -> None:
    good = {"image_url": "https://example.com/a.png"}
    assert checked({"images": [good, good]})["images"] == [good, good]
    assert problems({"images": [good, {"image_url": "http://10.0.0.1/"}, "text", {"image_url": "file:///x"}, {}]}) == [
        (["body", "images", 1, "image_url"], "image_url"),
        (["body", "images", 3, "image_url"], "image_url"),
    ]


def test_the_size_of_a_data_uri() -> None:
    limits = FREE.model_copy(update={"max_data_uri_bytes": len(PIXEL)})
    assert checked({"image_url": PIXEL}, limits)["image_url"] == PIXEL
    assert problems({"image_url": PIXEL + "A"}, limits) == [(["body", "image_url"], "image_url")]
    assert problems({"images": [{"image_url": PIXEL + "A"}]}, limits)


# --- tokens and prompts


@pytest.mark.parametrize("name", TOKEN_FIELDS)
def test_both_spellings_of_the_token_ceiling_count(name: str) -> None:
    limits = FREE.model_copy(update={"max_tokens": 100})
    assert checked({name: 100}, limits)[name] == 100
    assert problems({name: 101}, limits) == [(["body", name], "less_than_equal")]
    assert problems({name: 4097})[0][0] == ["body", name]


def test_neither_spelling_hides_the_other() -> None:
    limits = FREE.model_copy(update={"max_tokens": 100})
    for low, high in (TOKEN_FIELDS, reversed(TOKEN_FIELDS)):
        assert problems({low: 1, high: 101}, limits) == [(["body", high], "less_than_equal")]


@pytest.mark.parametrize(
    ("endpoint", "most", "filled"),
    [
        (NEXT, 100, {"max_tokens": 64}),
        (NEXT, 32, {"max_tokens": 32}),
        (COUNTING, 32, {"max_new_tokens": 32}),
        (LLAMA, 256, {"max_new_tokens": 256}),
        (LLAMA, 255, {"max_new_tokens": 255}),
        (NEXT, None, {}),
    ],
)
def test_a_ceiling_that_is_not_given_is_filled_in(endpoint: str, most: int | None, filled: dict[str, int]) -> None:
    limits = FREE.model_copy(update={"max_tokens": most})
    sent = checked({}, limits, endpoint)
    assert sent == {"image_url": PIXEL, "prompt": "?", **filled}


@pytest.mark.parametrize("value", [-5, 0, 1.5, "100", None, True, [1], 1e400])
@pytest.mark.parametrize("name", TOKEN_FIELDS)
def test_a_lax_schema_of_an_operators_own_opens_no_way_around(name: str, value: object) -> None:
    """What is reserved is this number: a negative one would fill the quota up."""
    lax = endpoint_from({"id": "fal-ai/own", "input": {"type": "object"}})
    with pytest.raises(InvalidInput) as refused:
        check_input(lax, FREE, {name: value}, own_files=OWN_FILES)
    assert [one["loc"] for one in refused.value.details] == [["body", name]]


def test_the_length_of_a_prompt() -> None:
    limits = FREE.model_copy(update={"max_prompt_chars": 5})
    assert checked({"prompt": "äöü😀!"}, limits)["prompt"] == "äöü😀!"
    assert problems({"prompt": "äöü😀!."}, limits) == [(["body", "prompt"], "string_too_long")]


def test_every_problem_is_told_at_once() -> None:
    limits = FREE.model_copy(update={"max_prompt_chars": 5, "max_tokens": 9})
    found = problems({"prompt": "too long", "max_tokens": 10, "image_url": "ftp://a/", "temperature": 3}, limits)
    assert sorted(str(where[-1]) for where, _ in found) == ["image_url", "max_tokens", "prompt", "temperature"]


# --- as a caller sees it


@pytest.fixture(scope="module")
def ceilings(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    quotas = [per("tenant", "requests", 100), per("tenant", "tokens", 10_000)]
    limits = {"narrow": plan(max_tokens=48, max_prompt_chars=40, quotas=quotas, image_schemes=["data"])}
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("ceilings"), limits) as stack:
        yield stack


@pytest.fixture
def alice(ceilings: Stack, sandbox: SandboxControl) -> Iterator[Person]:
    with Person(ceilings, ceilings.token(tenant="narrow")) as person:
        yield person


def test_fal_is_told_the_ceiling_that_the_caller_did_not_give(alice: Person, sandbox: SandboxControl) -> None:
    assert alice.run().status_code == 200
    alice.submitted(endpoint=COUNTING)
    alice.submitted(max_new_tokens=7)
    told = [{name: record["json"].get(name) for name in TOKEN_FIELDS} for record in posts(sandbox)]
    assert told == [
        {"max_tokens": 48, "max_new_tokens": None},
        {"max_tokens": None, "max_new_tokens": 48},
        {"max_tokens": None, "max_new_tokens": 7},
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 49},
        {"max_new_tokens": 49},
        {"prompt": "x" * 41},
        {"image_url": "https://example.com/cat.png"},
        {"images": [{"image_url": "http://10.0.0.1/"}]},
    ],
)
@pytest.mark.parametrize("kind", ["run", "queue"])
def test_what_is_over_a_ceiling_is_422_and_costs_nothing(
    alice: Person, sandbox: SandboxControl, kind: str, wrong: dict[str, Any]
) -> None:
    before = alice.facts()
    answer: httpx.Response = (alice.run if kind == "run" else alice.submit)(**{"prompt": "?", **wrong})
    body = refusal(answer, 422, "invalid_input")
    assert [one["loc"][1] for one in body["detail"]] == list(set(wrong) - {"image_url"} or wrong)
    assert alice.facts() == before
    assert not posts(sandbox)


def test_a_picture_that_was_uploaded_is_let_through_whatever_the_schemes(alice: Person, ceilings: Stack) -> None:
    wanted = {"content_type": "image/png", "file_name": "a.png"}
    slot = alice.call("POST", "rest/storage/upload/initiate", wanted).json()
    picture = Path(__file__).parents[1] / "pictures" / "chelsea.png"
    alice.http.put(slot["upload_url"], content=picture.read_bytes(), headers={"content-type": "image/png"})
    answer = alice.run(image_url=slot["file_url"])
    assert answer.status_code == 200 and "451 × 300" in answer.json()["output"]
