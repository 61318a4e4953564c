"""The clients of phones by their recorded requests, and by what their decoders accept."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clients.decoders import dart_status, dart_validation_problems, hook_status, swift_message, swift_status
from tests.clients.expectations import (
    ALL_LOGS,
    ALL_STATES,
    BROKEN_PICTURE,
    ENDPOINT,
    PICTURE,
    SIZES,
    SLOWLY,
    asked,
    describes,
    describes_the_picture,
    messages,
    picture_of,
    states,
)
from tests.clients.recordings import Recording, Reply
from tests.support.stack import Stack

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
STATUS_OF: dict[str, Callable[[Any], None]] = {"swift": swift_status, "dart": dart_status, "expo": hook_status}
#: The header that has the session; Swift's has it in the path.
CREDENTIAL = {
    "swift": "authorization",
    "dart": "authorization",
    "expo": "x-fal-proxy-session",
    "kotlin": "Authorization",
}


class App:
    """One of the clients in an app with a session."""

    def __init__(self, name: str, stack: Stack) -> None:
        self.name = name
        self.address = urlsplit(stack.url).netloc
        self.session: str = stack.token()
        self._recording = Recording(name)

    def send(self, request: str, *, session: str | None = None, image_url: str | None = None, **values: Any) -> Reply:
        session = self.session if session is None else session
        image_url = image_url or asked()["image_url"]
        usual = {
            "proxy": f"/s/{session}/api/fal/proxy" if self.name == "swift" else "/api/fal/proxy",
            "session": session,
            "endpoint": ENDPOINT,
            "max_tokens": 256,
            "pace": "",
            "image_url": image_url,
            "swift_image_url": image_url.replace("/", "\\/"),
        }
        without = "" if session else CREDENTIAL[self.name]
        return self._recording.send(request, self.address, without=without, **usual | values)

    def upload(self, path: Path = PICTURE) -> str:
        place = self.send("initiate").json
        target = urlsplit(place["upload_url"])
        where = {"upload_path": f"{target.path}?{target.query}".rstrip("?"), "upload_host": target.netloc}
        reply = self._recording.send("upload", target.netloc, file=path.read_bytes(), **where)
        assert 200 <= reply.status < 300
        url: str = place["file_url"]
        return url


@pytest.fixture(params=STATUS_OF)
def app(request: pytest.FixtureRequest, stack: Stack) -> App:
    return App(request.param, stack)


def test_run(app: App) -> None:
    reply = app.send("run")
    assert reply.status == 200 and reply.headers["x-fal-request-id"]
    assert describes_the_picture(reply.json["output"])


@pytest.mark.parametrize("logs", [1, 0], ids=["logs", "no-logs"])
def test_subscribe(app: App, logs: int) -> None:
    job = app.send("submit", pace=SLOWLY).json["request_id"]
    seen = [app.send("status", request_id=job, logs=logs).json]
    while seen[-1]["status"] != "COMPLETED":
        time.sleep(0.1)
        seen.append(app.send("status", request_id=job, logs=logs).json)
    for status in seen:
        STATUS_OF[app.name](status)
    assert states(seen) == ALL_STATES
    assert (messages(seen[-1]) == ALL_LOGS) if logs else not seen[-1]["logs"]
    result = app.send("result", request_id=job)
    assert result.headers["x-fal-request-id"] == job
    assert describes_the_picture(result.json["output"])


def test_upload_and_its_url(app: App, stack: Stack) -> None:
    url = app.upload()
    stack.sandbox.forget()
    assert describes_the_picture(app.send("run", image_url=url).json["output"])
    (run,) = [request for request in stack.sandbox.requests() if request["host"] == "run"]
    assert run["json"]["image_url"] == url


@pytest.mark.parametrize("size", SIZES)
def test_uploads_of_any_size(app: App, tmp_path: Path, size: int) -> None:
    path = picture_of(tmp_path, size)
    assert describes(app.send("run", image_url=app.upload(path)).json["output"], path)


@pytest.mark.parametrize("request_name", ["run", "submit"])
def test_wrong_input(app: App, stack: Stack, request_name: str) -> None:
    stack.sandbox.forget()
    reply = app.send(request_name, max_tokens='"many"')
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "max_tokens"]
    assert len(dart_validation_problems(reply.json)) == 1
    assert stack.sandbox.requests() == []


def test_input_that_the_model_refuses(app: App) -> None:
    """fal's own 422 passes unchanged: the Dart client cannot read it, with or without a proxy."""
    reply = app.send("run", image_url=BROKEN_PICTURE)
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "image_url"]


REFUSALS: dict[str, tuple[dict[str, Any], int, str]] = {
    "not-a-session": ({"session": "nonsense"}, 401, "unauthenticated"),
    "endpoint-not-on-the-list": ({"endpoint": "fal-ai/flux/dev"}, 403, "endpoint_not_allowed"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal(app: App, stack: Stack, refusal: str) -> None:
    wrong, status, error_type = REFUSALS[refusal]
    stack.sandbox.forget()
    assert_refusal(app.send("run", **wrong), status, error_type)
    assert stack.sandbox.requests() == []


def test_no_session(app: App, stack: Stack) -> None:
    """Swift's proxy URL without the session in it; the others without their header."""
    stack.sandbox.forget()
    assert_refusal(app.send("run", session="", proxy="/api/fal/proxy"), 401, "unauthenticated")
    assert stack.sandbox.requests() == []


def test_expired_session(app: App, stack: Stack) -> None:
    session = stack.token(ttl_seconds=60)
    assert app.send("run", session=session).status == 200
    stack.clock.advance(61)
    assert_refusal(app.send("run", session=session), 401, "session_expired")


@pytest.mark.parametrize("name", CREDENTIAL)
def test_renewed_session(name: str, stack: Stack) -> None:
    """As the recipe for the client does it, a minute before the end."""
    app = App(name, stack)
    session = stack.token(ttl_seconds=900)
    stack.clock.advance(850)
    renewed = app.send("renew", session=session)
    assert renewed.status == 201 and set(renewed.json) >= {"token", "expires_at"}
    # In the form that Swift's decoder, Java's OffsetDateTime and Dart's DateTime read.
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", renewed.json["expires_at"])
    stack.clock.advance(60)
    assert_refusal(app.send("run", session=session), 401, "session_expired")
    assert describes_the_picture(app.send("run", session=renewed.json["token"]).json["output"])
    assert_refusal(app.send("renew", session=session), 401, "session_expired")


def test_job_whose_session_expired(app: App, stack: Stack) -> None:
    session = stack.token(ttl_seconds=60)
    job = app.send("submit", session=session).json["request_id"]
    stack.clock.advance(61)
    while app.send("status", session=session, request_id=job, logs=0).json["status"] != "COMPLETED":
        time.sleep(0.1)
    assert describes_the_picture(app.send("result", session=session, request_id=job).json["output"])


def test_the_recipes_send_what_is_recorded() -> None:
    """The renewal is the recipe's own; withSession does it for Expo."""
    kit = EXAMPLES / "client" / "index.js"
    recipes = {path.parent.name: path for path in (EXAMPLES / "recipes").glob("*/*") if path.suffix != ".jsx"}
    assert set(recipes) == set(CREDENTIAL)
    for name, path in recipes.items():
        text = (kit if name == "expo" else path).read_text()
        header = Recording(name).header_names("renew") & {"authorization", "x-fal-proxy-session"}
        assert "v1/sessions/renew" in text and all(one in text.lower() for one in header) and len(header) == 1


def test_job_of_another_caller(app: App, stack: Stack) -> None:
    job = app.send("submit").json["request_id"]
    assert_refusal(app.send("status", request_id=job, logs=0, session=stack.token("mallory")), 404, "not_found")
    assert_refusal(app.send("result", request_id=job, session=stack.token("mallory")), 404, "not_found")


@pytest.mark.parametrize("logs", [1, 0], ids=["logs", "no-logs"])
def test_job_of_fals_own_package(stack: Stack, logs: int) -> None:
    """It takes a status for the end of its job by the number alone: 202 or 200."""
    app = App("fal-apps", stack)
    job = app.send("submit", pace=SLOWLY).json["request_id"]
    seen: list[Reply] = []
    while not seen or seen[-1].status != 200:
        time.sleep(0.1)
        seen.append(app.send("status", request_id=job, logs=logs))
        assert (seen[-1].status, seen[-1].json["status"]) in [
            (202, "IN_QUEUE"),
            (202, "IN_PROGRESS"),
            (200, "COMPLETED"),
        ]
        assert "logs" in seen[-1].json
    assert states([reply.json for reply in seen]) == ALL_STATES
    assert (messages(seen[-1].json) == ALL_LOGS) if logs else seen[-1].json["logs"] is None
    assert describes_the_picture(app.send("result", request_id=job).json["output"])


def test_cancel_and_stream_of_fals_own_package(stack: Stack) -> None:
    app = App("fal-apps", stack)
    job = app.send("submit", pace="[[pace hold=IN_QUEUE]]").json["request_id"]
    assert app.send("cancel", request_id=job).status == 202
    stream = app.send("stream")
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert describes_the_picture(stream.body.decode())
    assert_refusal(app.send("submit", session="nonsense"), 401, "unauthenticated")


def assert_refusal(reply: Reply, status: int, error_type: str) -> None:
    assert (reply.status, reply.json["error_type"]) == (status, error_type)
    assert swift_message(reply.json) == reply.json["message"]
