"""The checks that make requests, each on its own."""

from __future__ import annotations

import time
from datetime import datetime
from email.utils import parsedate_to_datetime

from proxy.cli.doctor.findings import FAIL, OK, WARN, Finding
from proxy.cli.doctor.visit import Visit, describe, refusal_of

#: What a session is minted for; it is revoked at the end.
SESSION_SECONDS = 300
#: Sessions live for minutes, and identity tokens allow for a minute.
CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS = 5.0, 60.0
#: More than nginx lets through by default, and less than the proxy does.
BODY_BYTES = 2 * 1024 * 1024
SLOW_SECONDS = 1.0


def check_health(visit: Visit) -> Finding:
    """Check whether it is this proxy that answers."""
    started = time.monotonic()
    answer = visit.http.get("/livez")
    seconds = time.monotonic() - started
    if answer.status_code != 200 or not answer.content.startswith(b'{"status":"ok"'):
        advice = "Give the address that leads to the proxy, without a path, and forward every path to it."
        return Finding("health", FAIL, f"/livez answers {describe(answer)}", advice)
    message = f"/livez answers in {seconds * 1000:.0f} ms"
    if seconds > SLOW_SECONDS:
        return Finding("health", WARN, message, "Look for slow names, a slow network, or a machine that is busy.")
    return Finding("health", OK, message)


def check_headers(visit: Visit) -> Finding:
    """Check whether refusals and headers arrive as the proxy wrote them."""
    answer = visit.http.get("/v1/session")
    refusal, headers = refusal_of(answer), answer.headers
    if answer.status_code != 401 or refusal is None:
        advice = "Pass errors through as they are: clients read the proxy's JSON (nginx: proxy_intercept_errors off)."
        return Finding("headers", FAIL, f"a refusal arrives as {describe(answer)}", advice)
    needed = {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-fal-error-type": refusal["error_type"],
    }
    lost = [name for name, value in needed.items() if value not in headers.get(name, "")]
    if lost:
        advice = "Let what stands in between neither remove nor replace them."
        return Finding("headers", FAIL, f"lost or replaced: {', '.join(lost)}", advice)
    if headers.get("x-request-id") != visit.http.headers["x-request-id"]:
        advice = "Pass x-request-id in both directions, so that logs can be compared."
        return Finding("headers", WARN, "x-request-id is not that of the request", advice)
    return Finding("headers", OK, "refusals and headers arrive as they are")


def check_keep_alive(visit: Visit) -> Finding:
    """Check whether a connection is used again."""
    first, second = (visit.http.get("/livez").extensions["network_stream"] for _ in range(2))
    if first is not second:
        advice = "Keep connections open: each poll would pay for a new one, with TLS (nginx: keepalive_timeout)."
        return Finding("keep-alive", WARN, "each request needs a new connection", advice)
    return Finding("keep-alive", OK, "a connection is used again")


def check_cors(visit: Visit, origin: str) -> Finding:
    """Check whether a page of an origin may call, and whether nothing else answers for the proxy."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = visit.http.options("/v1/jobs", headers={"origin": origin, **asked})
    answer = visit.http.get("/v1/session", headers={"origin": origin})
    for kind, one in (("the preflight", preflight), ("an answer", answer)):
        allowed = one.headers.get_list("access-control-allow-origin")
        if len(allowed) > 1:
            advice = "Let the proxy alone answer CORS: remove these headers from what stands in between."
            return Finding("cors", FAIL, f"{kind} allows an origin {len(allowed)} times", advice)
        if allowed != [origin]:
            advice = f"Add {origin} to allowed_origins of the tenant, or to PROXY_ALLOWED_ORIGINS."
            return Finding("cors", FAIL, f"{kind} does not allow {origin} ({describe(one)})", advice)
    if "authorization" not in preflight.headers.get("access-control-allow-headers", "").lower():
        advice = "Let the proxy alone answer preflights."
        return Finding("cors", FAIL, "the preflight does not allow the authorization header", advice)
    return Finding("cors", OK, f"pages of {origin} may call")


def check_session(visit: Visit) -> Finding:
    """Check whether a session is minted, if there is a tenant key, and whether it is accepted."""
    if not visit.has_session:
        form = {"subject": "doctor", "ttl_seconds": SESSION_SECONDS}
        before = time.time()
        minted = visit.http.post("/v1/sessions", json=form, headers={"authorization": f"Bearer {visit.key}"})
        if minted.status_code != 201:
            advice = "Check FAL_PROXY_KEY, and that the authorization header reaches the proxy."
            return Finding("session", FAIL, f"no session is minted: {describe(minted)}", advice)
        document = minted.json()
        visit.begin_session(document["token"])
        moment = datetime.fromisoformat(document["expires_at"]).timestamp() - SESSION_SECONDS
        visit.clock_difference = moment - (before + time.time()) / 2
    answer = visit.ask("GET", "/v1/session")
    if answer.status_code != 200:
        advice = "Check FAL_PROXY_SESSION, and that the authorization header reaches the proxy."
        return Finding("session", FAIL, f"the session is refused: {describe(answer)}", advice)
    facts = answer.json()
    return Finding("session", OK, f"a session of {facts['tenant']} may call {len(facts['endpoints'])} endpoints")


def check_clock(visit: Visit) -> Finding:
    """Check how far the proxy's clock is from this one: as a session has it, or else as the server says."""
    difference = visit.clock_difference
    if difference is None:
        before = time.time()
        said = visit.http.get("/livez").headers.get("date")
        if said is None:
            return Finding("clock", WARN, "the server does not say the time", "Let the date header pass.")
        difference = parsedate_to_datetime(said).timestamp() - (before + time.time()) / 2
    message = f"{abs(difference):.1f} seconds {'ahead of' if difference > 0 else 'behind'} this machine's clock"
    level = FAIL if abs(difference) > CLOCK_FAIL_SECONDS else WARN if abs(difference) > CLOCK_WARN_SECONDS else OK
    advice = "" if level == OK else "Synchronise the clocks (NTP): sessions end too early or too late."
    return Finding("clock", level, message, advice)


def check_bodies(visit: Visit) -> Finding:
    """Check whether a body of some size reaches the proxy. An estimate costs nothing."""
    wanted = {"endpoint": "fal-ai/doctor", "input": {"prompt": "x" * BODY_BYTES}}
    answer = visit.ask("POST", "/v1/estimate", json=wanted)
    refusal = refusal_of(answer)
    if answer.status_code != 200 and refusal is None:
        advice = "Allow bodies of PROXY_MAX_BODY_BYTES in what stands in between (nginx: client_max_body_size)."
        return Finding(
            "bodies", FAIL, f"a body of {BODY_BYTES} bytes is refused on its way: {answer.status_code}", advice
        )
    if refusal is not None:
        advice = "PROXY_MAX_BODY_BYTES is lower." if answer.status_code == 413 else "Try again."
        return Finding("bodies", WARN, f"the proxy refuses a body of {BODY_BYTES} bytes: {describe(answer)}", advice)
    return Finding("bodies", OK, f"a body of {BODY_BYTES} bytes reaches the proxy")
