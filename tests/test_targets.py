"""The parser of targets: what it makes of each lawful call, and that it refuses the rest before any I/O."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.catalog import built_in
from proxy.errors import BadTarget, ProxyError
from proxy.targets import MAX_URL_LENGTH, Kind, Target, parse_path, parse_request_id, parse_url
from tests.security.hostile import NEXT, NOBODYS, PATHS, TARGETS, Row

QUEUE = f"https://queue.fal.run/{NEXT}"
JOB = f"{QUEUE}/requests/{NOBODYS}"


def job(kind: Kind, *, logs: bool = False) -> Target:
    return Target(kind, app=NEXT, request_id=NOBODYS, logs=logs)


LAWFUL = [
    ("POST", f"https://fal.run/{NEXT}", Target(Kind.RUN, endpoint=NEXT, app=NEXT)),
    ("POST", f"https://FAL.run/{NEXT}", Target(Kind.RUN, endpoint=NEXT, app=NEXT)),
    ("POST", f"https://fal.run/{NEXT}?", Target(Kind.RUN, endpoint=NEXT, app=NEXT)),
    ("POST", f"https://fal.run/{NEXT}/stream", Target(Kind.STREAM, endpoint=NEXT, app=NEXT)),
    ("POST", "https://fal.run/owner/app/sub/stream", Target(Kind.STREAM, endpoint="owner/app/sub", app="owner/app")),
    ("POST", f"https://fal.run/{NEXT}/", Target(Kind.RUN, endpoint=NEXT, app=NEXT)),
    ("POST", f"https://fal.run/{NEXT}/stream/", Target(Kind.STREAM, endpoint=NEXT, app=NEXT)),
    ("POST", "https://fal.run/owner/stream", Target(Kind.RUN, endpoint="owner/stream", app="owner/stream")),
    ("POST", QUEUE, Target(Kind.SUBMIT, endpoint=NEXT, app=NEXT)),
    ("POST", f"{QUEUE}/", Target(Kind.SUBMIT, endpoint=NEXT, app=NEXT)),
    ("POST", f"{QUEUE}/v2", Target(Kind.SUBMIT, endpoint=f"{NEXT}/v2", app=NEXT)),
    (
        "POST",
        "https://queue.fal.run/workflows/owner/app/x",
        Target(Kind.SUBMIT, endpoint="workflows/owner/app/x", app="workflows/owner/app"),
    ),
    ("GET", f"{JOB}/status", job(Kind.STATUS)),
    ("GET", f"{JOB}/status/?logs=1", job(Kind.STATUS, logs=True)),
    ("GET", f"{JOB}/status?logs=0", job(Kind.STATUS)),
    ("GET", f"{JOB}/status?logs=true", job(Kind.STATUS, logs=True)),
    ("GET", f"{JOB}/status?logs=false", job(Kind.STATUS)),
    ("GET", f"{JOB}/status/stream", job(Kind.STATUS_STREAM)),
    ("GET", f"{JOB}/status/stream?logs=1", job(Kind.STATUS_STREAM, logs=True)),
    ("GET", JOB, job(Kind.RESULT)),
    ("GET", f"{JOB}/", job(Kind.RESULT)),
    ("GET", f"{JOB}/response", job(Kind.RESULT)),
    ("PUT", f"{JOB}/cancel", job(Kind.CANCEL)),
    (
        "GET",
        f"https://queue.fal.run/workflows/o/a/requests/{NOBODYS}",
        Target(Kind.RESULT, app="workflows/o/a", request_id=NOBODYS),
    ),
    ("POST", "https://rest.fal.ai/storage/upload/initiate", Target(Kind.UPLOAD_INITIATE)),
    ("POST", "https://rest.alpha.fal.ai/storage/upload/initiate", Target(Kind.UPLOAD_INITIATE)),
    ("POST", "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", Target(Kind.UPLOAD_INITIATE)),
    ("POST", "https://rest.fal.ai/storage/upload/initiate?storage_type=gcs", Target(Kind.UPLOAD_INITIATE)),
    *(
        ("POST", f"https://{host}/storage/{path}{query}", Target(kind))
        for path, kind in (
            ("upload/initiate-multipart", Kind.UPLOAD_INITIATE_PARTS),
            ("auth/token", Kind.UPLOAD_TOKEN),
        )
        for host in ("rest.fal.ai", "rest.alpha.fal.ai")
        for query in ("", "?storage_type=fal-cdn-v3")
    ),
]


@pytest.mark.parametrize(("method", "url", "target"), LAWFUL)
def test_a_lawful_url_is_understood(method: str, url: str, target: Target) -> None:
    assert parse_url(method, [url]) == target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"{QUEUE}?fal_max_queue_length=3", "Leave it out; how many jobs you may have at once"),
        (f"{QUEUE}/?fal_max_queue_length=3", "Leave it out; how many jobs you may have at once"),
        (f"https://fal.run/{NEXT}?fal_max_queue_length=3", "Leave it out; how many jobs you may have at once"),
        (f"https://fal.run/{NEXT}/stream?fal_jwt_token=x", "calls are made with the proxy's own key"),
        (f"https://fal.run/{NEXT}/stream?seed=3", "send its parameters in the JSON body"),
        (f"https://fal.run/{NEXT}?seed=3", "send its parameters in the JSON body"),
        (f"{QUEUE}?seed=3", "'seed'"),
        ("https://rest.fal.ai/tokens/", "leave connectionMode out"),
        ("https://rest.alpha.fal.ai/tokens", "leave connectionMode out"),
        ("https://rest.fal.ai/tokens/realtime", "leave connectionMode out"),
        ("https://rest.fal.ai/tokens/realtime", "no realtime connections"),
        ("https://rest.fal.ai/tokensmith", "only those calls of fal's REST host that begin an upload"),
    ],
)
def test_calls_that_clients_make_and_the_proxy_lacks_are_refused_with_a_reason(url: str, reason: str) -> None:
    with pytest.raises(BadTarget) as refusal:
        parse_url("POST", [url])
    assert reason in refusal.value.message


@pytest.mark.parametrize("path", [f"{NEXT}/realtime", f"{NEXT}/ws", "workflows/owner/app/realtime/"])
def test_a_websocket_is_refused_with_a_reason(path: str) -> None:
    """A WebSocket is opened by a GET. The same path may be an endpoint, for the catalogue to know."""
    with pytest.raises(BadTarget, match=r"no realtime connections.* Use run, submit or stream"):
        parse_url("GET", [f"https://fal.run/{path}"])
    with pytest.raises(BadTarget, match="with POST"):
        parse_url("GET", [f"https://queue.fal.run/{path}"])
    assert parse_url("POST", [f"https://fal.run/{path}"]).kind is Kind.RUN


@pytest.mark.parametrize(("method", "url", "target"), LAWFUL)
def test_the_host_form_means_the_same(method: str, url: str, target: Target) -> None:
    _, _, host, path = url.split("/", 3)
    prefix = {"queue": "queue", "rest": "rest"}.get(host.split(".")[0], "run")
    path, _, query = path.partition("?")
    assert parse_path(method, f"{prefix}/{path}", query) == target


def test_the_tables_of_urls_are_long_and_name_each_url_once() -> None:
    assert len(TARGETS) >= 120
    for table in (TARGETS, PATHS):
        assert len({(row.method, row.value) for row in table}) == len(table)


@pytest.mark.parametrize("row", TARGETS, ids=str)
def test_a_hostile_url_is_refused(row: Row) -> None:
    check_refusal(row, lambda: parse_url(row.method, row.headers))


@pytest.mark.parametrize("row", [row for row in PATHS if row.headers[0].startswith("/fal/")], ids=str)
def test_a_hostile_path_is_refused(row: Row) -> None:
    path, _, query = row.headers[0].partition("?")
    check_refusal(row, lambda: parse_path(row.method, path.removeprefix("/fal/"), query))


def check_refusal(row: Row, parse: Callable[[], Target]) -> None:
    """The parser refuses the row itself, or names an endpoint or a job for the gate to refuse, of harmless letters."""
    if row.refused_by_parser:
        with pytest.raises(ProxyError) as refusal:
            parse()
        assert (refusal.value.status, refusal.value.code) == (row.status, row.code)
        return
    target = parse()
    assert target.endpoint not in built_in().ids()
    assert target.request_id or row.code == "endpoint_not_allowed"
    for text in (target.endpoint, target.app, target.request_id):
        assert text.isascii() and set(text) <= set("/._-") | {one for one in text if one.isalnum()}


def test_the_length_that_is_allowed_is_allowed() -> None:
    longest = f"https://fal.run/{NEXT}/".ljust(MAX_URL_LENGTH, "a")
    assert parse_url("POST", [longest]).endpoint == longest.removeprefix("https://fal.run/")


def test_errors_do_not_repeat_what_the_caller_sent_in_full() -> None:
    with pytest.raises(ProxyError) as refusal:
        parse_url("POST", [f"{QUEUE}?{'k' * 1000}=1"])
    assert "k" * 41 not in refusal.value.message


@pytest.mark.parametrize("text", ["", "a/b", "..", "a b", "a\n", "é", "a" * 129, "a.b", "a%2f"])
def test_a_text_that_is_no_request_id_is_refused(text: str) -> None:
    with pytest.raises(ProxyError):
        parse_request_id(text)
