"""Parses a request of any surface into a `Target`: the fal call that is wanted. No function here does I/O.

A request must match a known host, method, path and query; everything else is refused. The URL that reaches fal is later
built from the target alone, so the only texts of a caller in it are an endpoint id and a request id, both of a narrow
alphabet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import TypeGuard
from urllib.parse import parse_qsl

from proxy.catalog import app_of
from proxy.errors import BadTarget, MethodNotAllowed, WebhookNotAllowed

MAX_URL_LENGTH = 2048


class Host(Enum):
    """fal's hosts by role; the value is the prefix of the host form."""

    RUN = "run"
    QUEUE = "queue"
    REST = "rest"


class Kind(Enum):
    """The kind of a fal call."""

    RUN = "run"
    STREAM = "stream"
    SUBMIT = "submit"
    STATUS = "status"
    STATUS_STREAM = "status_stream"
    RESULT = "result"
    CANCEL = "cancel"
    UPLOAD_INITIATE = "upload_initiate"
    UPLOAD_INITIATE_PARTS = "upload_initiate_parts"
    UPLOAD_TOKEN = "upload_token"

    @cached_property
    def names_endpoint(self) -> bool:
        """Whether the target carries a full endpoint id and an input."""
        return self in (Kind.RUN, Kind.STREAM, Kind.SUBMIT)

    @cached_property
    def names_job(self) -> bool:
        return self in (Kind.STATUS, Kind.STATUS_STREAM, Kind.RESULT, Kind.CANCEL)

    @cached_property
    def reads_job(self) -> bool:
        return self in (Kind.STATUS, Kind.STATUS_STREAM, Kind.RESULT)

    @cached_property
    def intake(self) -> str | None:
        """The host of fal that takes new work of this kind; None for questions about a job and for upload tokens."""
        if self in (Kind.RUN, Kind.STREAM):
            return "run"
        if self is Kind.SUBMIT:
            return "queue"
        return "storage" if self in (Kind.UPLOAD_INITIATE, Kind.UPLOAD_INITIATE_PARTS) else None

    @cached_property
    def is_upload(self) -> bool:
        return self in (Kind.UPLOAD_INITIATE, Kind.UPLOAD_INITIATE_PARTS, Kind.UPLOAD_TOKEN)

    @cached_property
    def repeatable(self) -> bool:
        """Whether it can be sent twice without harm: it runs and bills nothing."""
        return not self.names_endpoint


@dataclass(frozen=True, slots=True)
class Target:
    """One wanted fal call.

    Attributes:
        endpoint: the full endpoint id of a run, stream or submit; '' otherwise.
        app: the part of it that names the queue; '' for uploads.
        request_id: of a status, stream, result or cancel; '' otherwise.
        logs: whether logs were asked for.
    """

    kind: Kind
    endpoint: str = ""
    app: str = ""
    request_id: str = ""
    logs: bool = False


#: The hosts that clients name, old ones included, by the role they play.
_HOSTS = {
    "fal.run": Host.RUN,
    "queue.fal.run": Host.QUEUE,
    "rest.fal.ai": Host.REST,
    "rest.alpha.fal.ai": Host.REST,
}
#: The CDN's name to clients; where it is, is a setting.
CDN_HOST = "v3.fal.media"
#: What fal's clients use.
METHODS = ("GET", "POST", "PUT")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
#: No port, no user, no dot at the end, no percent-encoding, no backslash: nothing two parsers could read in two ways.
_URL = re.compile(r"https://([A-Za-z0-9.-]+)(/[^?#%\\@]*)(?:\?([^#\\]*))?")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CDN_URL = re.compile(
    r"https://((?:[A-Za-z0-9-]+\.)*fal\.media)/"
    r"(files/upload(?:/multipart)?|files(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+/multipart/[A-Za-z0-9_-]{1,128}/(?:[0-9]{1,5}|complete))"
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LOGS = {"0": False, "false": False, "1": True, "true": True}
_STORAGE_TYPES = ("fal-cdn-v3", "gcs")
#: Why keys that fal knows are not passed on.
_REASONS = {
    "fal_max_queue_length": "fal_max_queue_length is not passed on: it would count the jobs of everybody who uses this "
    "proxy. Leave it out; how many jobs you may have at once is a limit of your plan.",
    "fal_jwt_token": "fal_jwt_token is not passed on: calls are made with the proxy's own key. Leave it out.",
}
_NO_TOKENS = (
    "fal's tokens are not given out: calls made with them would know no limit. Stream through the proxy instead: leave "
    'connectionMode out, or set it to "server". There are no realtime connections.'
)
_NO_REALTIME = (
    "The proxy makes no realtime connections: calls within one would know no limit. Use run, submit or stream."
)
#: How the paths end at which clients open WebSockets.
_REALTIME = ("realtime", "ws")
_JOB_TAILS = {
    ("GET", ""): Kind.RESULT,
    ("GET", "response"): Kind.RESULT,
    ("GET", "status"): Kind.STATUS,
    ("GET", "status/stream"): Kind.STATUS_STREAM,
    ("PUT", "cancel"): Kind.CANCEL,
}
_REST_PATHS = {
    ("POST", "storage/upload/initiate"): Kind.UPLOAD_INITIATE,
    ("POST", "storage/upload/initiate-multipart"): Kind.UPLOAD_INITIATE_PARTS,
    # Answered by the proxy itself: fal's own token would open all files of the account.
    ("POST", "storage/auth/token"): Kind.UPLOAD_TOKEN,
}


def parse_url(method: str, headers: Sequence[str]) -> Target:
    """Parse the target of the fal proxy protocol: the request's method, and all its `x-fal-target-url` headers.

    Raises:
        BadTarget: it cannot be understood, or is no call this proxy makes.
        MethodNotAllowed: a method that no fal client uses.
        WebhookNotAllowed: the result was to be sent to another address.
    """
    if method not in METHODS:
        raise method_not_allowed()
    if len(headers) != 1:
        raise BadTarget("Send exactly one x-fal-target-url header, with the fal URL to call.")
    (url,) = headers
    return _parsed_url(method, url)


@lru_cache(maxsize=4096)
def _parsed_url(method: str, url: str) -> Target:
    """Parse a URL. Results are cached, as clients poll one job many times."""
    if len(url) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(url):
        raise BadTarget("The target URL must be printable ASCII without spaces, of 2048 characters at most.")
    match = _URL.fullmatch(url)
    host = _HOSTS.get(match[1].lower()) if match else None
    if match is None or host is None:
        raise BadTarget("The target URL must be https://, on one of fal's API hosts, without port, user or encoding.")
    return _parse(host, method, match[2], match[3] or "")


def parse_path(method: str, raw_path: str, query: str) -> Target:
    """Parse the target of the host form: what follows `/fal/` in the raw path, still percent-encoded, and the query.

    Raises:
        BadTarget, MethodNotAllowed, WebhookNotAllowed: as `parse_url`.
    """
    if method not in METHODS:
        raise method_not_allowed()
    prefix, _, path = raw_path.partition("/")
    host = next((host for host in Host if host.value == prefix), None)
    if host is None or len(raw_path) + len(query) > MAX_URL_LENGTH or not path.isascii():
        raise BadTarget("Use run/, queue/ or rest/ below /fal/, or cdn/ for uploads.")
    return _parse(host, method, f"/{path}", query)


def parse_cdn_url(url: str) -> tuple[str, str] | None:
    """Parse a URL of fal's CDN that takes a file, whole or in parts: its host and path; None for any other."""
    match = _CDN_URL.fullmatch(url) if len(url) <= MAX_URL_LENGTH else None
    return None if match is None else (match[1].lower(), match[2])


def is_request_id(value: object) -> TypeGuard[str]:
    """Return whether a value can be fal's id of a request: it becomes part of paths, headers and keys."""
    return isinstance(value, str) and _REQUEST_ID.fullmatch(value) is not None


def parse_request_id(text: str) -> str:
    """Parse a request id as fal makes them.

    Raises:
        BadTarget: it has characters that no request id has.
    """
    if not is_request_id(text):
        raise BadTarget("The request id is not valid.")
    return text


def parse_logs(text: str) -> bool:
    """Return whether logs are wanted.

    Raises:
        BadTarget: it says neither yes nor no.
    """
    if text not in _LOGS:
        raise BadTarget("logs must be 0 or 1.")
    return _LOGS[text]


def method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed("Use GET, POST or PUT.", headers={"allow": ", ".join(METHODS)})


def _parse(host: Host, method: str, path: str, query: str) -> Target:
    segments = path[1:].split("/")
    if host is Host.REST and segments[0] == "tokens":
        raise BadTarget(_NO_TOKENS)
    if host is not Host.REST and len(segments) > 1 and segments[-1] == "":
        # Old fal SDKs end queue URLs with one slash, and the newest client the URL of an endpoint that is given as one.
        segments.pop()
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise BadTarget("The target's path has an empty segment, or characters that no fal path has.")
    keys = _query(query)
    if host is Host.REST:
        return _rest(method, "/".join(segments), keys)
    if host is Host.QUEUE and "requests" in segments:
        return _job(method, segments, keys)
    return _endpoint(host, method, segments, keys)


def _endpoint(host: Host, method: str, segments: list[str], keys: dict[str, str]) -> Target:
    kind = Kind.RUN if host is Host.RUN else Kind.SUBMIT
    if kind is Kind.RUN and len(segments) > 2 and segments[-1] == "stream":
        kind = Kind.STREAM
        segments = segments[:-1]
    if method != "POST":
        if kind is Kind.RUN and segments[-1] in _REALTIME:
            raise BadTarget(_NO_REALTIME)
        raise BadTarget(f"Call fal's {host.value} host with POST.")
    if "fal_webhook" in keys:
        raise WebhookNotAllowed("The proxy supports no webhooks: it returns results to the caller only.")
    for key in keys:
        if key in _REASONS:
            raise BadTarget(_REASONS[key])
    if keys and kind is not Kind.SUBMIT:
        raise BadTarget("A model takes no query: send its parameters in the JSON body, as the input.")
    _refuse_keys(keys, ())
    endpoint = "/".join(segments)
    return Target(kind, endpoint=endpoint, app=app_of(endpoint))


def _job(method: str, segments: list[str], keys: dict[str, str]) -> Target:
    at = segments.index("requests")
    app, rest = "/".join(segments[:at]), segments[at + 1 :]
    kind = _JOB_TAILS.get((method, "/".join(rest[1:]))) if rest else None
    if kind is None or app != app_of(app) or app.count("/") < 1:
        raise BadTarget("A job has no such call: GET its status, status/stream or result, or PUT cancel.")
    _refuse_keys(keys, ("logs",) if kind in (Kind.STATUS, Kind.STATUS_STREAM) else ())
    return Target(kind, app=app, request_id=parse_request_id(rest[0]), logs=parse_logs(keys.get("logs", "0")))


def _rest(method: str, path: str, keys: dict[str, str]) -> Target:
    kind = _REST_PATHS.get((method, path))
    if kind is None:
        raise BadTarget("The proxy supports only those calls of fal's REST host that begin an upload.")
    _refuse_keys(keys, ("storage_type",))
    if keys.get("storage_type", _STORAGE_TYPES[0]) not in _STORAGE_TYPES:
        raise BadTarget(f"storage_type must be one of {', '.join(_STORAGE_TYPES)}.")
    return Target(kind)


def _query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8)
    except ValueError:
        raise BadTarget("The target's query cannot be read.") from None
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise BadTarget("The target's query contains a key twice.")
    return keys


def _refuse_keys(keys: dict[str, str], known: Sequence[str]) -> None:
    if unknown := sorted(set(keys) - set(known)):
        raise BadTarget(f"The target's query has a key that the proxy does not support: {unknown[0][:40]!r}.")
