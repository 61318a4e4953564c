"""Log lines: one a record, that can be parsed whatever a caller sent, and that show no secret in any spelling."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadRequest
from proxy.redaction import HIDDEN, Redactor
from proxy.settings import LogSettings, Secret, read
from proxy.telemetry.logs import LineHandler, configure_logging, log_request
from proxy.uploads.multipart import parse_form

#: With all that some encoding escapes.
AWKWARD = "pa'ss\"wo\\rd é𝄞/+=&\n:%-tail"
PLAIN = "an-id-of-a-key:a-secret-of-a-key"
SECRETS = [
    Secret(AWKWARD),
    Secret(PLAIN),
    Secret("postgresql://proxy:p%40ss%2Fw0rd-of-it@db/proxy?sslpassword=of-the-key"),
]
FIELD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)(?: |$)')
HEAD = re.compile(r'(\S+Z) ([A-Z]+) +("(?:[^"\\]|\\.)*"|[^"=\\]*?)(?= [a-z_]+=|$)')

Log = Callable[..., str]


@contextmanager
def logging_as(form: str) -> Iterator[Log]:
    """A function that logs one record through the handler of the program, and returns what it wrote."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging(LogSettings(form, "debug"), Redactor(SECRETS))
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)

    logger = logging.getLogger("proxy.test")

    def log(message: str, *arguments: object, exc_info: bool = False, extra: dict[str, Any] | None = None) -> str:
        output = io.StringIO()
        handler.setStream(output)
        failure = sys.exc_info() if exc_info else None
        # Straight to the handler: pytest's own would keep texts that cannot be encoded, such as half a surrogate.
        handler.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, message, arguments, failure, extra=extra))
        return output.getvalue()

    try:
        yield log
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(form: str) -> Iterator[Log]:
    with logging_as(form) as log:
        yield log


def parse(form: str, line: str) -> dict[str, Any]:
    """The fields of a line of the log, as a program reads it."""
    assert line.endswith("\n") and len(line.splitlines()) == 1, line
    # Nothing that a terminal acts upon, or that is read in another place than it stands.
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", line)
    if form == "json":
        found: dict[str, Any] = json.loads(line)
        return found
    line = line.removesuffix("\n")
    head = HEAD.match(line)
    assert head is not None, line
    fields: dict[str, Any] = {"time": head[1], "level": head[2].lower(), "message": unquote(head[3])}
    at = head.end() + 1
    while at < len(line):
        field = FIELD.match(line, at)
        assert field is not None, line[at:]
        assert field[1] not in fields, "a field twice"
        fields[field[1]] = unquote(field[2])
        at = field.end()
    return fields


def unquote(text: str) -> str:
    return str(json.loads(text)) if text.startswith('"') else text


HOSTILE = [
    "two words",
    "a status=200",
    'quoted "text"',
    "back\\slash",
    "line\nbreak\r\nand another",
    "\x1b[31mred",
    "\x00\x7f",
    "c1 \x9b and nel \x85",
    "lines \u2028 and \u2029",
    "\u202eturned\u202c \u2066\u200f\u061c",
    "2026-01-01T00:00:00.000Z INFO    request status=200",
    '/s/a"b\\c d',
    '/uploads/"',
    'https://user@x/?token="a\\',
    "half \ud800 a pair",
    "Кот\u3000и\u00a0кот",
    "",
    " ",
    "=",
    '"',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_a_line_or_forges_a_field(log: Log, form: str, text: str) -> None:
    check_line(log, form, text)


@given(text=st.text(st.characters(), max_size=60), form=st.sampled_from(["json", "text"]))
def test_random_text_breaks_no_line_and_forges_no_field(text: str, form: str) -> None:
    with logging_as(form) as log:
        check_line(log, form, text)


def check_line(log: Log, form: str, text: str) -> None:
    expected = Redactor(SECRETS).clean(text)
    found = parse(form, log("an event", extra={"log_fields": {"subject": text, "status": 403}}))
    assert found["subject"] == expected and str(found["status"]) == "403" and found["message"] == "an event"
    assert set(found) - {"logger"} == {"time", "level", "message", "subject", "status"}
    found = parse(form, log("%s", text, extra={"log_fields": {"status": 403}}))
    assert set(found) - {"logger"} == {"time", "level", "message", "status"} and str(found["status"]) == "403"
    assert found["message"] == expected or (form == "text" and found["message"].strip() == expected.strip())


def test_a_traceback_is_in_its_line(log: Log, form: str) -> None:
    try:
        raise ValueError(f"no good: {PLAIN} and {AWKWARD!r}\n2026-01-01T00:00:00.000Z INFO    forged status=200")
    except ValueError:
        found = parse(form, log("an event", exc_info=True))
    assert "ValueError: no good: **** and '****'" in found["traceback"] and "status" not in found


def spellings_of(secret: str) -> list[str]:
    return [
        secret,
        repr(secret),
        repr([secret]),
        repr(f"'\" {secret}"),
        ascii(secret),
        repr(secret.encode()),
        json.dumps(secret),
        json.dumps(json.dumps(secret)),
        json.dumps(secret, ensure_ascii=False),
        repr(json.dumps(secret)),
        quote(secret),
        quote(secret, safe=""),
        quote(secret, safe="").lower(),
        quote_plus(secret),
    ]


@pytest.mark.parametrize(
    "text", [*spellings_of(AWKWARD), *spellings_of(PLAIN), *spellings_of("p@ss/w0rd-of-it"), "of-the-key"]
)
def test_a_secret_is_redacted_however_it_is_spelled(log: Log, form: str, text: str) -> None:
    found = parse(form, log("at %s", text, extra={"log_fields": {"subject": f"<{text}>"}}))
    for shown in (found["message"], found["subject"]):
        assert HIDDEN in shown
        assert not any(part in shown for part in ("tail", "secret", "w0rd", "of-the-key")), shown


def test_words_that_only_resemble_a_secret_stay(log: Log, form: str) -> None:
    said = "a token bucket at https://fal.run/fal-ai/llava?logs=1 of a-secret, 5 calls"
    assert parse(form, log(said))["message"] == said


def test_facts_of_any_type_have_a_line(log: Log, form: str) -> None:
    fields = {"large": 2**80, "none": None, "yes": True, "list": [PLAIN, 1], "object": Secret(PLAIN), "part": 0.5}
    found = parse(form, log("an event", extra={"log_fields": fields}))
    # A text has Python's words for what JSON has its own for.
    assert [str(found[name]) for name in ("large", "none", "yes", "part")] == [str(2**80), "None", "True", "0.5"]
    assert (found["list"], found["object"]) == ("['****', 1]", "****")


def test_arguments_that_do_not_fit_a_message_are_not_printed(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_as(form) as log:
        assert parse(form, log("a number: %d", PLAIN))["message"] == "a number: %d"
    assert capsys.readouterr().err == ""


@pytest.mark.anyio
async def test_a_form_that_cannot_be_read_writes_no_line(log: Log) -> None:
    """The parser of forms has warnings of its own, one for each wrong byte."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"--b\r\nwrong header\r\n\r\n"

    assert log("before")
    with pytest.raises(BadRequest):
        await parse_form(body(), "multipart/form-data; boundary=b", 100)
    assert not logging.getLogger("python_multipart.multipart").isEnabledFor(logging.WARNING)


@contextmanager
def written_as(form: str) -> Iterator[io.StringIO]:
    """What the program's handler, which is the only one meanwhile, writes."""
    with logging_as(form):
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, LineHandler)
        output = io.StringIO()
        handler.setStream(output)
        yield output


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
@pytest.mark.parametrize("text", [*HOSTILE, *spellings_of(AWKWARD), "plain"])
def test_a_request_is_logged_as_any_record_is(form: str, text: str, level: int) -> None:
    fields = {"subject": text, "status": 200, "milliseconds": 0.5, "none": None, "large": 2**80, "list": [text]}
    with written_as(form) as output:
        log_request(level, fields)
        logging.getLogger("proxy.access").log(level, "request", extra={"log_fields": fields})
    timeless = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "NOW", output.getvalue())
    first, second, end = timeless.split("\n")
    assert first == second and "NOW" in first and end == ""


@pytest.mark.parametrize("name", [None, "proxy.access"])
def test_another_handler_gets_the_record_of_a_request_too(name: str | None) -> None:
    records: list[logging.LogRecord] = []
    other = logging.Handler()
    other.emit = records.append  # type: ignore[method-assign]
    with written_as("json") as output:
        logging.getLogger(name).addHandler(other)
        try:
            log_request(logging.INFO, {"status": 200})
        finally:
            logging.getLogger(name).removeHandler(other)
    assert json.loads(output.getvalue())["status"] == 200
    (record,) = records
    assert (record.name, record.getMessage(), vars(record)["log_fields"]) == (
        "proxy.access",
        "request",
        {"status": 200},
    )


def test_a_log_that_cannot_be_written_fails_no_request(form: str) -> None:
    with written_as(form) as output:
        output.close()
        log_request(logging.INFO, {"status": 200})
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, LineHandler)
        handler.stream = io.StringIO()
        log_request(logging.INFO, {"status": 200})
        assert handler.stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("secret", ["&&&&++++====", "&a&b&c&d&e&f", AWKWARD, PLAIN])
def test_a_secret_is_found_whatever_characters_it_has(secret: str) -> None:
    redactor = Redactor([Secret(secret)])
    for text in spellings_of(secret):
        assert redactor.is_needed(f"<{text}>") and HIDDEN in redactor.clean(f"<{text}>"), text
    assert not redactor.is_needed("nothing of that")


@pytest.mark.parametrize("prefix", ["fpk", "fpa"])
def test_a_key_or_an_admin_token_is_found_by_its_form(prefix: str) -> None:
    redactor, text = Redactor([]), f"<{prefix}_{'0' * 16}_{'a-_' * 14}b>"
    assert redactor.is_needed(text) and redactor.clean(text) == f"<{HIDDEN}>"


def test_every_secret_of_the_settings_is_known_to_the_redactor() -> None:
    environ = {
        "FAL_KEY": PLAIN,
        "PROXY_SESSION_SECRETS": "first-secret-of-the-sessions-of-tests,second-secret-of-the-sessions-of-tests",
        "PROXY_ADMIN_TOKEN": "an-admin-token-of-the-tests-with-32-bytes",
        "PROXY_DATABASE_URL": "postgresql://proxy:a-password-of-the-database@db/proxy",
        "PROXY_REDIS_URL": "redis://:a-password-of-redis@cache",
    }
    redactor = Redactor(read(environ).secrets)
    for text in (*",".join(environ.values()).split(","), "a-password-of-the-database", "a-password-of-redis"):
        assert redactor.clean(f"<{text}>") == f"<{HIDDEN}>"
