"""Requests that must never become a call to fal, with the refusal each one gets.

`TARGETS` is for the fal proxy protocol (the value of `x-fal-target-url`), `PATHS` for the host form (the raw path below
the proxy's origin). Every run, stream and submit among them is sent with an input that fal would take, by a caller who
may call every endpoint: nothing but the row's target or path is wrong.
"""

# ruff: noqa: E501 - a table is easier to read wide than wrapped

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.targets import MAX_URL_LENGTH

NEXT = "fal-ai/llava-next"
#: A request id as fal makes them, of a job that does not exist.
NOBODYS = "764cabcf-b745-4b3e-ae38-1200304cf45b"
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
JOB = f"https://queue.fal.run/{NEXT}/requests/{NOBODYS}"


@dataclass(frozen=True)
class Row:
    """One refused request.

    Attributes:
        value: a header's value, one character a byte; several values for a header that is sent several times.
        status, code: the refusal. The code also says which part refuses: see `refused_by_parser`.
    """

    method: str
    value: str | tuple[str, ...]
    status: int
    code: str

    @property
    def headers(self) -> tuple[str, ...]:
        return (self.value,) if isinstance(self.value, str) else self.value

    @property
    def refused_by_parser(self) -> bool:
        """Whether the parser refuses it by its text alone; otherwise the gate does, which knows catalogue and jobs."""
        return self.code in ("bad_target", "method_not_allowed", "webhook_not_allowed")

    @property
    def is_http(self) -> bool:
        """Whether it can be sent at all: a line break ends a header, and servers refuse other control characters."""
        return not CONTROL.search("".join(self.headers))

    def __str__(self) -> str:
        shown = ascii(self.value)
        return f"{self.method} {shown if len(shown) <= 90 else shown[:70] + f'… ({len(shown)})'}"


def _bad(method: str, *values: str) -> list[Row]:
    return [Row(method, value, 400, "bad_target") for value in values]


def _forbidden_rows(method: str, *values: str) -> list[Row]:
    return [Row(method, value, 403, "endpoint_not_allowed") for value in values]


def _unknown_rows(method: str, *values: str) -> list[Row]:
    return [Row(method, value, 404, "not_found") for value in values]


TARGETS: list[Row] = [
    # --- no URL at all
    *_bad("POST", "", " ", "/", "null", "undefined", "fal.run", NEXT, f"/{NEXT}", f"//fal.run/{NEXT}", "https:", "https://"),
    *_bad("POST", f"https:/fal.run/{NEXT}", f"https:///fal.run/{NEXT}", f"https:fal.run/{NEXT}", f"https//fal.run/{NEXT}"),
    # --- schemes
    *_bad("POST", f"http://fal.run/{NEXT}", f"HTTP://fal.run/{NEXT}", f"ftp://fal.run/{NEXT}", f"ws://fal.run/{NEXT}"),
    *_bad("POST", f"wss://fal.run/{NEXT}/realtime", "file:///etc/passwd", "data:text/plain,x", "javascript:alert(1)"),
    *_bad("POST", f"https+unix://fal.run/{NEXT}", f"xhttps://fal.run/{NEXT}", f"https ://fal.run/{NEXT}"),
    *_bad("POST", f"view-source:https://fal.run/{NEXT}", f"https://https://fal.run/{NEXT}", "gopher://fal.run:70/_x"),
    # --- user, port, dots, brackets
    *_bad("POST", f"https://user@fal.run/{NEXT}", f"https://user:pw@fal.run/{NEXT}", f"https://@fal.run/{NEXT}"),
    *_bad("POST", f"https://fal.run@evil.example/{NEXT}", f"https://fal.run:x@evil.example/{NEXT}"),
    *_bad("POST", f"https://evil.example@fal.run/{NEXT}", f"https://fal.run%40evil.example/{NEXT}"),
    *_bad("POST", f"https://fal.run:443/{NEXT}", f"https://fal.run:8443/{NEXT}", f"https://fal.run:/{NEXT}"),
    *_bad("POST", f"https://fal.run:0/{NEXT}", f"https://fal.run:99999/{NEXT}", f"https://fal.run:443:443/{NEXT}"),
    *_bad("POST", f"https://fal.run./{NEXT}", f"https://FAL.RUN./{NEXT}", f"https://.fal.run/{NEXT}", f"https://fal..run/{NEXT}"),
    *_bad("POST", f"https://[fal.run]/{NEXT}", f"https://[::1]/{NEXT}", f"https://[::ffff:127.0.0.1]/{NEXT}"),
    # --- other hosts
    *_bad("POST", f"https://fal.run.evil.com/{NEXT}", f"https://evilfal.run/{NEXT}", f"https://xfal.run/{NEXT}"),
    *_bad("POST", f"https://fal.run-evil.com/{NEXT}", f"https://evil.com/fal.run/{NEXT}", f"https://evil/{NEXT}"),
    *_bad("POST", "https://evil/#fal.run", "https://evil/?fal.run", f"https://evil#@fal.run/{NEXT}"),
    *_bad("POST", f"https://evil?@fal.run/{NEXT}", f"https://evil;fal.run/{NEXT}", f"https://evil,fal.run/{NEXT}"),
    *_bad("POST", f"https://www.fal.run/{NEXT}", f"https://gateway.fal.run/{NEXT}", f"https://ws.fal.run/{NEXT}"),
    *_bad("POST", f"https://fal.ai/{NEXT}", "https://api.fal.ai/v1/models", f"https://falrun.com/{NEXT}"),
    *_bad("POST", f"https://queue.falrun.com/{NEXT}", f"https://gateway.alpha.fal.ai/{NEXT}", "https://v3.fal.media/files/upload"),
    *_bad("POST", f"https://fal-run/{NEXT}", f"https://fal%2Erun/{NEXT}", f"https://fal.run%2F/{NEXT}", f"https://fal.run%00/{NEXT}"),
    # --- addresses
    *_bad("POST", f"https://127.0.0.1/{NEXT}", f"https://2130706433/{NEXT}", f"https://0x7f000001/{NEXT}"),
    *_bad("POST", f"https://0177.0.0.1/{NEXT}", f"https://127.1/{NEXT}", f"https://0/{NEXT}", f"https://localhost/{NEXT}"),
    *_bad("POST", "https://169.254.169.254/latest/meta-data", "https://metadata.google.internal/x"),
    # --- backslashes, white space, control characters
    *_bad("POST", f"https:\\\\fal.run\\{NEXT}", f"https://fal.run\\@evil/{NEXT}", f"https://evil\\.fal.run/{NEXT}"),
    *_bad("POST", "https://fal.run/fal-ai\\llava-next", f"https://fal.run/{NEXT}\\..\\other", f"https://fal.run\\/{NEXT}"),
    *_bad("POST", f"https://fal.run /{NEXT}", f"https://fal.run/{NEXT} HTTP/1.1", "https://fal.run/fal-ai/ llava-next"),
    *_bad("POST", f"https://fal.run/{NEXT}\tx", f"https://fal\t.run/{NEXT}", f"https://fal.run\t/{NEXT}", f"ht\ttps://fal.run/{NEXT}"),
    *_bad("POST", f"https://fal.run/{NEXT}\r\n", f"https://fal.run/{NEXT}\n", f"https://fal.run/{NEXT}\r\nx-evil: 1"),
    *_bad("POST", f"https://fal.run/{NEXT}\nHost: evil", f"https://fal\n.run/{NEXT}", f"https://fal.run/\r{NEXT}"),
    *_bad("POST", f"https://fal.run/{NEXT}\0", f"\0https://fal.run/{NEXT}", f"https://fal.run\0.evil.com/{NEXT}"),
    *_bad("POST", f"https://fal.run/{NEXT}\x7f", f"https://fal.run/{NEXT}\x1b[2J", f"\x08https://fal.run/{NEXT}", f"https://fal.run/{NEXT}\x0b"),
    # --- beyond ASCII, as Latin-1 and as the bytes of UTF-8 (ideographic full stop, fullwidth letters, soft hyphen)
    *_bad("POST", f"https://f\xe4l.run/{NEXT}", f"https://fal.run/{NEXT}\xe9", "https://fal.run/fal-ai/ll\xe0va-next"),
    *_bad("POST", f"https://fal\xe3\x80\x82run/{NEXT}", f"https://\xef\xbd\x86al.run/{NEXT}", f"https://fa\xc2\xadl.run/{NEXT}"),
    *_bad("POST", f"https://fal.run/{NEXT}\xa0", f"https://fal.run/{NEXT}\x85", f"\xff\xfehttps://fal.run/{NEXT}"),
    *_bad("POST", f"https://xn--fal-run-9za/{NEXT}", f"https://xn--fl-xia.run/{NEXT}", f"https://\xe2\x84\xaball.run/{NEXT}"),
    # --- paths: encodings, empty and dotted segments, what other parsers cut at
    *_bad("POST", "https://fal.run", "https://fal.run/", "https://fal.run//", f"https://fal.run//{NEXT}", "https://fal.run/fal-ai//llava-next"),
    *_bad("POST", f"https://fal.run/{NEXT}//", f"https://fal.run/{NEXT}/stream//", f"https://fal.run/./{NEXT}", f"https://fal.run/{NEXT}/."),
    *_bad("POST", f"https://fal.run/../{NEXT}", f"https://fal.run/{NEXT}/..", f"https://fal.run/{NEXT}/../other", "https://fal.run/fal-ai/../fal-ai/llava-next"),
    *_bad("POST", f"https://fal.run/{NEXT}/../../other/app", f"https://fal.run/{NEXT}/...", f"https://fal.run/.{NEXT}", "https://fal.run/fal-ai/.llava-next"),
    *_bad("POST", f"https://fal.run/{NEXT}/%2e%2e", f"https://fal.run/{NEXT}/%2E%2E/other", f"https://fal.run/%2e%2e/{NEXT}", f"https://fal.run/{NEXT}/.%2e"),
    *_bad("POST", "https://fal.run/fal-ai%2Fllava-next", "https://fal.run/fal-ai%2fllava-next", "https://fal.run/fal-ai%5Cllava-next"),
    *_bad("POST", "https://fal.run/fal-ai/llava%2Dnext", "https://fal.run/%66al-ai/llava-next", "https://fal.run/fal-ai%252Fllava-next"),
    *_bad("POST", f"https://fal.run/{NEXT}%00", f"https://fal.run/{NEXT}%0d%0ax:1", f"https://fal.run/{NEXT}%20", f"https://fal.run/{NEXT}%", f"https://fal.run/{NEXT}%zz"),
    *_bad("POST", f"https://fal.run/{NEXT}%3Fx=1", f"https://fal.run/{NEXT}%23", f"https://fal.run/{NEXT}#", f"https://fal.run/{NEXT}#x", f"https://fal.run/#/{NEXT}"),
    *_bad("POST", f"https://fal.run/{NEXT};x=1", f"https://fal.run/{NEXT};", "https://fal.run/fal-ai;a/llava-next", f"https://fal.run/{NEXT}:x", f"https://fal.run/{NEXT}@x"),
    *_bad("POST", f"https://fal.run/{NEXT}&x=1", f"https://fal.run/{NEXT}+", f"https://fal.run/{NEXT}*", f"https://fal.run/{NEXT}'", f'https://fal.run/{NEXT}"', f"https://fal.run/{NEXT}<x>"),
    *_bad("POST", f"https://fal.run/~{NEXT}", f"https://fal.run/-{NEXT}", f"https://fal.run/_{NEXT}", f"https://fal.run/{NEXT}/${{x}}", f"https://fal.run/{NEXT}|x", "https://fal.run/{owner}/app"),
    # --- endpoints that are not on the list, however similar
    *_forbidden_rows("POST", "https://fal.run/fal-ai/llava-next-evil", "https://fal.run/fal-ai/llava-nex", "https://fal.run/fal-ai/llava"),
    *_forbidden_rows("POST", f"https://fal.run/{NEXT}/admin", f"https://fal.run/{NEXT}/health", f"https://fal.run/{NEXT}/openapi.json"),
    *_forbidden_rows("POST", f"https://fal.run/{NEXT}/realtime", f"https://fal.run/{NEXT}/stream/stream", f"https://fal.run/{NEXT}/v1/chat"),
    *_forbidden_rows("POST", "https://fal.run/Fal-ai/llava-next", "https://fal.run/fal-ai/LLAVA-NEXT", "https://fal.run/fal-ai", "https://fal.run/stream"),
    *_forbidden_rows("POST", "https://fal.run/llava-next", f"https://fal.run/x/{NEXT}", f"https://fal.run/workflows/{NEXT}", "https://fal.run/evil/llava-next"),
    *_forbidden_rows("POST", "https://fal.run/fal-ai/flux/dev", "https://fal.run/fal-ai/llava-next.evil", "https://fal.run/fal-ai/llava-next_", "https://fal.run/fal-ai/llava-next..x"),
    *_forbidden_rows("POST", "https://fal.run/fal-ai/stream", "https://fal.run/health", f"https://fal.run/{NEXT}/requests/{NOBODYS}", f"https://fal.run/{NEXT}/requests"),
    *_forbidden_rows("POST", f"https://queue.fal.run/{NEXT}/stream", f"https://queue.fal.run/{NEXT}-evil", f"https://queue.fal.run/{NEXT}/status", f"https://queue.fal.run/{NEXT}/health"),
    *_forbidden_rows("POST", "https://queue.fal.run/fal-ai", "https://queue.fal.run/fal-ai/flux/", f"https://queue.fal.run/x/{NEXT}", f"https://QUEUE.FAL.RUN/{NEXT}x"),
    # --- methods
    *_bad("GET", f"https://fal.run/{NEXT}", f"https://fal.run/{NEXT}/health", f"https://fal.run/{NEXT}/openapi.json", "https://fal.run/health"),
    *_bad("GET", f"https://fal.run/{NEXT}/stream", f"https://fal.run/{NEXT}?prompt=x", f"https://queue.fal.run/{NEXT}", f"https://queue.fal.run/{NEXT}/"),
    *_bad("PUT", f"https://fal.run/{NEXT}", f"https://fal.run/{NEXT}/stream", f"https://queue.fal.run/{NEXT}", f"{JOB}", f"{JOB}/status", f"{JOB}/status/stream"),
    *_bad("GET", f"{JOB}/cancel", "https://rest.fal.ai/storage/upload/initiate", "https://rest.fal.ai/", "https://rest.fal.ai/.well-known/jwks.json"),
    *_bad("POST", f"{JOB}", f"{JOB}/cancel", f"{JOB}/status", f"{JOB}/status/stream", f"{JOB}/response"),
    *_bad("PUT", "https://rest.fal.ai/storage/upload/initiate", f"{JOB}/response"),
    *(Row(method, f"https://fal.run/{NEXT}", 405, "method_not_allowed") for method in ("DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")),
    *(Row(method, JOB, 405, "method_not_allowed") for method in ("DELETE", "PATCH", "HEAD")),
    # --- query keys
    *_bad("POST", f"https://fal.run/{NEXT}?x=1", f"https://fal.run/{NEXT}?fal_jwt_token=x", f"https://fal.run/{NEXT}?logs=1", f"https://fal.run/{NEXT}?&"),
    *_bad("POST", f"https://queue.fal.run/{NEXT}?fal_max_queue_length=1", f"https://queue.fal.run/{NEXT}?x", f"https://queue.fal.run/{NEXT}?=", f"https://queue.fal.run/{NEXT}?a=1&a=2"),
    *_bad("POST", f"https://queue.fal.run/{NEXT}?" + "&".join(f"k{n}=1" for n in range(9)), f"https://queue.fal.run/{NEXT}?x=1?y=2", f"https://queue.fal.run/{NEXT}?x=1#y"),
    *(Row("POST", f"https://{host}/{NEXT}{slash}?{key}=https://evil.example", 400, "webhook_not_allowed")
      for host, slash, key in (("queue.fal.run", "", "fal_webhook"), ("queue.fal.run", "/", "fal_webhook"), ("fal.run", "", "fal_webhook"), ("queue.fal.run", "", "fal%5Fwebhook"))),
    *_bad("POST", f"https://queue.fal.run/{NEXT}?FAL_WEBHOOK=https://evil.example", f"https://queue.fal.run/{NEXT}?fal_webhook=a&fal_webhook=b"),
    *_bad("GET", f"{JOB}/status?logs=2", f"{JOB}/status?logs=", f"{JOB}/status?logs=1&logs=0", f"{JOB}/status?logs=1&x=1", f"{JOB}/status?Logs=1", f"{JOB}/status?logs=TRUE"),
    *_bad("GET", f"{JOB}?logs=1", f"{JOB}/response?x=1", f"{JOB}/status/stream?logs=yes", f"{JOB}/status?logs=1;x=1", f"{JOB}/status?fal_jwt_token=x"),
    # --- jobs: tails, ids, and ids under what is no app
    *_bad("GET", f"{JOB}//status", f"{JOB}/status//", f"{JOB}//"),
    *_bad("GET", f"{JOB}/logs", f"{JOB}/status/stream/x", f"{JOB}/stream", f"{JOB}/status/..", f"{JOB}/response/x", f"{JOB}/Status", f"{JOB}/status.json"),
    *_bad("GET", f"https://queue.fal.run/{NEXT}/requests", f"https://queue.fal.run/{NEXT}/requests/", f"https://queue.fal.run/{NEXT}/requests//status"),
    *_bad("GET", f"https://queue.fal.run/requests/{NOBODYS}", f"https://queue.fal.run/fal-ai/requests/{NOBODYS}/status", f"https://queue.fal.run/{NEXT}/x/requests/{NOBODYS}/status"),
    *_bad("GET", f"https://queue.fal.run/{NEXT}/requests/a.b/status", f"https://queue.fal.run/{NEXT}/requests/{'a' * 129}/status", f"https://queue.fal.run/{NEXT}/requests/a~b", f"https://queue.fal.run/{NEXT}/requests/a%2Fb"),
    *_bad("GET", f"https://queue.fal.run/{NEXT}/requests/../requests/{NOBODYS}", f"https://queue.fal.run/{NEXT}/requests/{NOBODYS}%00", f"https://queue.fal.run/{NEXT}/requests/{NOBODYS};x", f"https://queue.fal.run/{NEXT}/requests/*"),
    *_bad("GET", f"https://queue.fal.run/{NEXT}/requests/requests/{NOBODYS}", f"https://queue.fal.run/{NEXT}/requests/{NOBODYS}/requests/{NOBODYS}"),
    *_forbidden_rows("GET", f"https://queue.fal.run/fal-ai/flux/requests/{NOBODYS}/status", f"https://queue.fal.run/{NEXT}-evil/requests/{NOBODYS}", f"https://queue.fal.run/workflows/{NEXT}/requests/{NOBODYS}"),
    *_unknown_rows("GET", JOB, f"{JOB}/", f"{JOB}/response", f"{JOB}/status", f"{JOB}/status/", f"{JOB}/status/stream?logs=1", f"https://queue.fal.run/{NEXT}/requests/{'a' * 128}", f"https://queue.fal.run/{NEXT}/requests/0"),
    *_unknown_rows("PUT", f"{JOB}/cancel", f"{JOB}/cancel/"),
    # --- the REST host: tokens, files, anything unknown
    *_bad("POST", "https://rest.fal.ai/tokens/", "https://rest.fal.ai/tokens", "https://rest.fal.ai/tokens/realtime", "https://rest.alpha.fal.ai/tokens/"),
    *_bad("POST", "https://rest.fal.ai/storage/auth/token/", "https://rest.fal.ai/storage/auth/token?storage_type=all", "https://rest.alpha.fal.ai/storage/auth"),
    *_bad("POST", "https://rest.fal.ai/storage/upload", "https://rest.fal.ai/storage/upload/initiate/", "https://rest.fal.ai/storage/upload/initiate/x", "https://rest.fal.ai/Storage/upload/initiate"),
    *_bad("POST", "https://rest.fal.ai/storage/upload/initiate?storage_type=other", "https://rest.fal.ai/storage/upload/initiate?x=1", "https://rest.fal.ai/storage/upload/initiate?storage_type=gcs&storage_type=gcs"),
    *_bad("POST", f"https://rest.fal.ai/{NEXT}", "https://rest.fal.ai/files/delete", "https://rest.fal.ai/billing/user_balance", "https://rest.beta.fal.ai/storage/upload/initiate", "https://fal.run/storage/upload/initiate#"),
    # --- size and number
    *_bad("POST", f"https://fal.run/{'a' * 8192}", f"https://fal.run/{NEXT}?" + "x" * 8192, "h" * 8192, f"https://{'fal.' * 2000}run/{NEXT}"),
    *_bad("POST", f"https://fal.run/{NEXT}{'/x' * 4000}", f"https://fal.run/{NEXT}/".ljust(MAX_URL_LENGTH + 1, "a")),
    Row("POST", (f"https://fal.run/{NEXT}", f"https://fal.run/{NEXT}"), 400, "bad_target"),
    Row("POST", (f"https://fal.run/{NEXT}", "https://evil.example/"), 400, "bad_target"),
    Row("POST", (f"https://fal.run/{NEXT}", ""), 400, "bad_target"),
    Row("POST", (), 400, "bad_target"),
    Row("GET", (), 400, "bad_target"),
    *_bad("POST", f"https://fal.run/{NEXT},https://fal.run/{NEXT}", f"https://fal.run/{NEXT}, https://evil.example/", f"<https://fal.run/{NEXT}>", f'"https://fal.run/{NEXT}"'),
]  # fmt: skip

PATHS: list[Row] = [
    # --- dot segments and encodings: nothing is resolved or decoded, not in the prefix either
    *_bad("POST", f"/fal/run/../run/{NEXT}", f"/fal/run/./{NEXT}", f"/fal/./run/{NEXT}", f"/fal/../fal/run/{NEXT}", f"/fal/x/../run/{NEXT}"),
    *_bad("POST", f"/fal/run/%2e%2e/run/{NEXT}", "/fal/run/fal-ai%2Fllava-next", "/fal/run/fal-ai/llava%2Dnext", "/fal/run/%66al-ai/llava-next"),
    *_bad("POST", f"/fal/%72un/{NEXT}", f"/fal%2Frun/{NEXT}", f"/%66al/run/{NEXT}", f"/fal/run%2F{NEXT}", f"/fal/run%2f%2e%2e/{NEXT}", f"/fal/run/{NEXT}%00"),
    *_bad("POST", f"/fal/run/{NEXT}%0dx", f"/fal/run/{NEXT}%2Fadmin", "/fal/run/fal-ai%252Fllava-next", "/fal/run/fal-ai%5Cllava-next", "/fal/run/fal-ai\\llava-next"),
    *_bad("POST", f"/fal/run//{NEXT}", f"/fal//run/{NEXT}", "/fal/run/fal-ai//llava-next", f"/fal/run/{NEXT}//", f"/fal/run/{NEXT}/.."),
    *_bad("POST", f"/fal/run/{NEXT};x", f"/fal/run/{NEXT}:443", f"/fal/run/{NEXT}@evil", f"/fal/run/https://fal.run/{NEXT}", "/fal/run/fal-ai/ll\xc3\xa4va", f"/fal/run/{NEXT}%C0%AF"),
    # --- invalid hosts
    *_bad("POST", "/fal/cdn/files/delete", f"/fal/RUN/{NEXT}", f"/fal/{NEXT}", "/fal/", "/fal/run", "/fal/run/", "/fal/queue", "/fal/queue/", "/fal/rest/", f"/fal/ws/{NEXT}", "/fal/evil.example/x"),
    # --- endpoints, methods, queries
    *_forbidden_rows("POST", f"/fal/run/{NEXT}-evil", f"/fal/run/{NEXT}/health", f"/fal/run/{NEXT}/openapi.json", "/fal/run/fal-ai/flux/dev", f"/fal/queue/{NEXT}/stream", f"/fal/run/x/{NEXT}"),
    *_bad("GET", f"/fal/run/{NEXT}", f"/fal/run/{NEXT}/health", f"/fal/queue/{NEXT}", f"/fal/run/{NEXT}/stream", "/fal/rest/storage/upload/initiate"),
    *_bad("PUT", f"/fal/run/{NEXT}", f"/fal/queue/{NEXT}", f"/fal/queue/{NEXT}/requests/{NOBODYS}"),
    *(Row(method, f"/fal/run/{NEXT}", 405, "method_not_allowed") for method in ("DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")),
    *_bad("POST", f"/fal/run/{NEXT}?x=1", f"/fal/queue/{NEXT}?fal_max_queue_length=1", f"/fal/queue/{NEXT}?x=1&x=2", f"/fal/queue/{NEXT}?%66al_jwt_token=1", f"/fal/queue/{NEXT}?\xe4=1"),
    *(Row("POST", f"/fal/queue/{NEXT}?{key}=https://evil.example", 400, "webhook_not_allowed") for key in ("fal_webhook", "%66al_webhook")),
    *_bad("GET", f"/fal/queue/{NEXT}/requests/{NOBODYS}/status?logs=1&x=1", f"/fal/queue/{NEXT}/requests/{NOBODYS}/x", f"/fal/queue/{NEXT}/requests/a%2Fb", f"/fal/queue/{NEXT}/requests/a.b"),
    *_bad("GET", f"/fal/queue/{NEXT}/requests/{NOBODYS}//status", f"/fal/queue/{NEXT}/requests//status", f"/fal/queue/{NEXT}/requests/{NOBODYS}/status/..", f"/fal/queue/{NEXT}/requests/{NOBODYS}%2Fstatus"),
    *_forbidden_rows("GET", f"/fal/queue/fal-ai/flux/requests/{NOBODYS}/status"),
    *_unknown_rows("GET", f"/fal/queue/{NEXT}/requests/{NOBODYS}", f"/fal/queue/{NEXT}/requests/{NOBODYS}/status?logs=1", f"/fal/queue/{NEXT}/requests/{NOBODYS}/status/stream", f"/fal/queue/{NEXT}/requests/{NOBODYS}/status/"),
    *_unknown_rows("PUT", f"/fal/queue/{NEXT}/requests/{NOBODYS}/cancel"),
    *_bad("POST", "/fal/rest/tokens/", "/fal/rest/tokens/realtime", "/fal/rest/storage/auth/token/", "/fal/rest/storage/upload/complete-multipart", "/fal/rest/storage/upload/initiate/", "/fal/rest/storage/upload/initiate?storage_type=x", "/fal/rest/billing"),
    *_bad("POST", f"/fal/run/{'a' * 8192}", f"/fal/run/{NEXT}{'/x' * 2000}", f"/fal/queue/{NEXT}?logs={'1' * 4000}"),
]  # fmt: skip
