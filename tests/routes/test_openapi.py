"""`/openapi.json` describes every route, form, answer and refusal, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import jsonschema_rs
import pytest

from proxy import __version__
from proxy.clock import to_iso
from proxy.errors import ProxyError, Unavailable
from proxy.routes.openapi import FORMS
from tests.support.alerts import raise_alert
from tests.support.images import png
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, asking, limited_proxy, per, plan
from tests.support.routes import answered_routes
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

PAGE = "https://app.acme.example"
#: High limits: only limited calls have the headers that describe a limit.
RATES = {"ip": None, "session": "10000/minute", "subject": None, "tenant": None}
PLANS = {
    "acme": plan(
        quotas=[per("subject", "requests", 1000), per("tenant", "usd", 5, "month")],
        rate_limits=RATES,
        poll_limits={"session": "10000/minute"},
    ),
    "single": plan(quotas=[per("subject", "requests", 1)]),
}
PRICES = [{"id": id_, "price_per_compute_second": 0.0006} for id_ in (NEXT, COUNTING)]
TIERS = [{"proof": "pow", "plan": "acme"}, {"proof": "none", "plan": "single"}]
TENANTS = {"acme": {"allowed_origins": [PAGE], "guests": {"enabled": True, "tiers": TIERS}}}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("openapi")
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=TENANTS, endpoints=PRICES) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def http(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client() as client:
        yield client


@pytest.fixture
def document(proxy: Stack) -> dict[str, Any]:
    with proxy.client("") as stranger:
        found: dict[str, Any] = stranger.get("/openapi.json").raise_for_status().json()
    return found


def month_of(proxy: Stack) -> str:
    return to_iso(proxy.clock.now())[:7]


#: Headers that an answer has only in some cases.
SOMETIMES = (
    *("retry-after", "idempotency-replayed", "x-fal-proxy-dropped", "quota", "quota-policy"),
    *("link", "content-disposition"),
)


class Promises:
    """Read the document's schemas and close each, so that an undocumented property of an answer is an error too."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._paths = document["paths"]
        self._components = close_objects(document["components"])

    def check(self, method: str, path: str, answer: httpx.Response, status: int) -> Any:
        """Check status and body against the document; return the answer's JSON."""
        assert answer.status_code == status, answer.text
        response = self._paths[path][method.lower()]["responses"][str(status)]
        if "$ref" in response:
            response = self._components["responses"][response["$ref"].rpartition("/")[2]]
        for name in response.get("headers", {}):
            assert name in answer.headers or name in SOMETIMES, name
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = close_objects(response["content"][media_type]["schema"])
        body = answer.json()
        jsonschema_rs.validator_for({**schema, "components": self._components}, validate_formats=True).validate(body)
        assert [text for text in moments_of(body) if datetime.fromisoformat(text).utcoffset() != timedelta(0)] == []
        return body


#: A moment of ISO 8601, with or without its offset from UTC.
MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:[\d.]+)?(Z|[+-]\d{2}:?\d{2})?")


def moments_of(body: Any) -> Iterator[str]:
    """The moments that an answer names, wherever they are but in a job's logs, which are as fal writes them."""
    if isinstance(body, str) and MOMENT.fullmatch(body):
        yield body
    elif isinstance(body, dict):
        yield from moments_of([one for name, one in body.items() if name != "logs"])
    elif isinstance(body, list):
        for one in body:
            yield from moments_of(one)


def close_objects(schema: Any) -> Any:
    """Copy a schema so that its objects allow named properties only, apart from what fal adds to a job."""
    if isinstance(schema, list):
        return [close_objects(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: close_objects(one) for name, one in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture
def promises(document: dict[str, Any]) -> Promises:
    return Promises(document)


# --- the document itself


def test_the_document_is_valid_and_of_this_version(proxy: Stack, document: dict[str, Any]) -> None:
    # Importing it takes a second of a collection.
    from openapi_spec_validator import validate

    validate(document)  # type: ignore[arg-type]
    assert document["openapi"] == "3.1.0" and document["info"]["version"] == __version__
    assert document["servers"] == [{"url": proxy.url}]


def test_the_document_may_be_cached_and_needs_no_session(proxy: Stack) -> None:
    with proxy.client("") as stranger:
        answer = stranger.get("/openapi.json")
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["content-type"] == "application/json"


def test_the_document_has_every_route_and_no_other(document: dict[str, Any]) -> None:
    described = {
        (path, method.upper())
        for path, operations in document["paths"].items()
        for method in operations
        if method not in ("parameters", "description")
    }
    assert described == {(path.replace(":path}", "}"), method) for path, method in answered_routes()}


def test_every_place_in_a_path_is_described(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method in set(operations) - {"parameters", "description"}:
            given = [*operations.get("parameters", []), *operations[method].get("parameters", [])]
            named = {one["name"] for one in given if one.get("in") == "path"}
            assert named == set(re.findall(r"{(\w+)}", path)), (method, path)


def kinds(of: type[ProxyError]) -> list[type[ProxyError]]:
    return [of, *(kind for child in of.__subclasses__() for kind in kinds(child))]


def test_the_document_has_every_error_with_its_status_and_no_other(document: dict[str, Any]) -> None:
    described = {
        (int(name.removeprefix("Refused")), code)
        for name, response in document["components"]["responses"].items()
        for code in response["content"]["application/json"]["schema"]["properties"]["error_type"]["enum"]
        if f"`{code}`: " in response["description"]
    }
    assert described == {(kind.status, kind.code) for kind in kinds(ProxyError) if kind is not Unavailable}


def test_every_response_of_a_refusal_is_used(document: dict[str, Any]) -> None:
    text = str(document["paths"])
    assert not [name for name in document["components"]["responses"] if f"responses/{name}'" not in text]


def test_every_schema_is_used(document: dict[str, Any]) -> None:
    text = str(document)
    assert not [name for name in document["components"]["schemas"] if f"schemas/{name}'" not in text]


def test_no_description_was_misread_as_yaml(document: dict[str, Any]) -> None:
    """YAML reads unquoted text with a comma or a colon as something else."""

    def empty(node: Any) -> list[Any]:
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [name for name, one in inner if one is None or empty(one)]

    # Forms, which are not written in YAML, have null as a default.
    components = {name: part for name, part in document["components"].items() if name != "schemas"}
    assert empty([document["paths"], document["info"], document["tags"], components]) == []


def schemas_in(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas_in(inner)


def test_no_enum_mixes_types(document: dict[str, Any]) -> None:
    """Generators make a type of each enum; openapi-python-client leaves out an enum that mixes text and numbers."""
    enums = [one["enum"] for one in schemas_in(document) if isinstance(one.get("enum"), list)]
    assert len(enums) > 20
    assert [enum for enum in enums if len(set(map(type, enum))) != 1] == []


def test_each_enum_and_constant_has_a_type(document: dict[str, Any]) -> None:
    """Generators for typed languages make no type of their own of one without."""
    closed = [one for one in schemas_in(document) if isinstance(one.get("enum"), list) or "const" in one]
    assert len(closed) > 40
    assert [one for one in closed if one.get("type") not in ("string", "integer")] == []
    for one in closed:
        assert all(jsonschema_rs.is_valid(one, value) for value in one.get("enum", [one.get("const")]))


def test_the_status_of_a_refusal_is_one_of_two(document: dict[str, Any]) -> None:
    status = document["components"]["schemas"]["Refusal"]["properties"]["status"]
    valid = [one for one in ("NOT_FOUND", 422, "422", 404, None) if jsonschema_rs.is_valid(status, one)]
    assert valid == ["NOT_FOUND", 422]


def test_schemas_of_forms_match_their_models(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for form in FORMS:
        own = form.model_json_schema(ref_template="#/components/schemas/{model}")
        own.pop("$defs", None)
        assert schemas[form.__name__] == own


# --- answers of real calls


def test_calls_of_jobs_answer_as_promised(http: httpx.Client, promises: Promises) -> None:
    wanted = {"endpoint": NEXT, "input": asking("What?")}
    created = http.post("/v1/jobs", json=wanted, headers={"idempotency-key": "one-of-the-tests"})
    again = http.post("/v1/jobs", json=wanted, headers={"idempotency-key": "one-of-the-tests"})
    assert again.headers["idempotency-replayed"] == "true"
    id_ = promises.check("POST", "/v1/jobs", created, 202)["id"]
    promises.check("POST", "/v1/estimate", http.post("/v1/estimate", json=wanted), 200)
    wrong = http.post("/v1/estimate", json=wanted | {"input": {}})
    promises.check("POST", "/v1/estimate", wrong, 200)
    promises.check("GET", "/v1/jobs", http.get("/v1/jobs"), 200)

    def is_done() -> bool:
        status = promises.check("GET", "/v1/jobs/{id}", http.get(f"/v1/jobs/{id_}", params={"logs": "1"}), 200)
        return bool(status["status"] == "COMPLETED" and status["logs"])

    wait_until(is_done, "the job does not end")
    promises.check("GET", "/v1/jobs/{id}/result", http.get(f"/v1/jobs/{id_}/result"), 200)
    promises.check("DELETE", "/v1/jobs/{id}", http.delete(f"/v1/jobs/{id_}"), 400)
    held = http.post("/v1/jobs", json={"endpoint": NEXT, "input": asking("[[pace hold=IN_QUEUE]]")}).json()["id"]
    promises.check("DELETE", "/v1/jobs/{id}", http.delete(f"/v1/jobs/{held}"), 202)


def test_events_of_a_job_are_as_promised(http: httpx.Client, document: dict[str, Any]) -> None:
    wanted = {"endpoint": NEXT, "input": asking("What?")}
    schemas = close_objects(document["components"])
    job = jsonschema_rs.validator_for({"$ref": "#/components/schemas/Job", "components": schemas})
    parameters = document["paths"]["/v1/jobs/{id}/events"]["get"]["parameters"]
    mark = jsonschema_rs.validator_for(parameters[0]["schema"])
    with http.stream("POST", "/v1/jobs", json=wanted, headers={"accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        text = answer.read().decode()
    events = [dict(re.findall(r"^(\w+): (.*)$", one, re.MULTILINE)) for one in text.split("\n\n")]
    sent = [event for event in events if "event" in event]
    assert [sent[0]["event"], sent[-1]["event"], sent[-1]["id"]] == ["status", "result", "END"]
    for event in sent:
        mark.validate(event["id"])
        if event["event"] == "status":
            job.validate(httpx.Response(200, text=event["data"]).json())


def test_uploads_answer_as_promised(proxy: Stack, http: httpx.Client, promises: Promises) -> None:
    typed = {"content-type": "image/png"}
    promises.check("POST", "/v1/uploads", http.post("/v1/uploads", content=png(50), headers=typed), 201)
    form = {"file": ("a.png", png(50), "image/png")}
    promises.check("POST", "/v1/uploads", http.post("/v1/uploads", files=form), 201)
    begin = {"content_type": "image/png", "file_name": "a.png"}
    slot = http.post("/fal/rest/storage/upload/initiate", json=begin).json()["upload_url"]
    promises.check("PUT", "/uploads/{slot}", http.put(slot, content=png(50), headers=typed), 200)
    slot = http.post("/fal/rest/storage/upload/initiate-multipart", json=begin).json()["upload_url"]
    sent = promises.check("PUT", "/uploads/{slot}/{part}", http.put(f"{slot}/1", content=png(50)), 200)
    joined = http.post(f"{slot}/complete", json={"parts": [sent]})
    promises.check("POST", "/uploads/{slot}/complete", joined, 200)
    token = http.post("/fal/rest/storage/auth/token", json={}).json()["token"]
    with proxy.client(token) as uploader:
        path = "/fal/cdn/files/upload"
        promises.check("POST", path, uploader.post(path, content=png(50), headers=typed), 200)
        begun = promises.check("POST", f"{path}/multipart", uploader.post(f"{path}/multipart", headers=typed), 200)
        below = f"{begun['access_url']}/multipart/{begun['uploadId']}"
        sent = uploader.put(f"{below}/1", content=png(50))
        part = promises.check("PUT", "/fal/cdn/{path}/multipart/{slot}/{part}", sent, 200)
        joined = uploader.post(f"{below}/complete", json={"parts": [part]})
        promises.check("POST", "/fal/cdn/{path}/multipart/{slot}/complete", joined, 200)


def test_calls_about_sessions_answer_as_promised(proxy: Stack, http: httpx.Client, promises: Promises) -> None:
    with proxy.client(proxy.tenant_key()) as backend:
        promises.check("POST", "/v1/sessions", backend.post("/v1/sessions", json={"subject": "bob"}), 201)
        promises.check("GET", "/v1/session", backend.get("/v1/session"), 200)
        promises.check("GET", "/v1/usage", backend.get("/v1/usage", params={"group_by": "subject"}), 200)
        month = month_of(proxy)
        promises.check("GET", "/v1/statements/{month}", backend.get(f"/v1/statements/{month}"), 200)
    with proxy.client("", headers={"origin": PAGE}) as page:
        promises.check("POST", "/v1/sessions/guest", page.post("/v1/sessions/guest"), 201)
        promises.check("GET", "/v1/sessions/challenge", page.get("/v1/sessions/challenge"), 200)
    promises.check("POST", "/v1/sessions/cookie", http.post("/v1/sessions/cookie"), 201)
    short = proxy.token(ttl_seconds=600)
    headers = {"cookie": proxy.cookie(short), "origin": PAGE}
    with proxy.client(short) as client, proxy.client("", headers=headers) as page:
        promises.check("POST", "/v1/sessions/renew", client.post("/v1/sessions/renew"), 201)
        promises.check("POST", "/v1/sessions/renew", page.post("/v1/sessions/renew"), 201)
    http.post(f"/fal/run/{NEXT}", json=asking("What?")).raise_for_status()
    promises.check("GET", "/v1/session", http.get("/v1/session"), 200)
    promises.check("GET", "/v1/endpoints", http.get("/v1/endpoints"), 200)
    promises.check("GET", "/v1/endpoints/{id}", http.get(f"/v1/endpoints/{NEXT}"), 200)
    usage = http.get("/v1/usage", params={"group_by": "day,endpoint"})
    assert promises.check("GET", "/v1/usage", usage, 200)["usage"]


def test_answers_of_the_admin_api(proxy: Stack, promises: Promises) -> None:
    with proxy.client() as client:
        client.post(f"/fal/run/{NEXT}", json=asking("What?")).raise_for_status()
    with proxy.client(ADMIN_TOKEN) as operator:
        tenants = "/v1/admin/tenants"
        promises.check("GET", tenants, operator.get(tenants), 200)
        promises.check("GET", f"{tenants}/{{tenant}}", operator.get(f"{tenants}/acme"), 200)
        named = [{"id": name, "plan": name, **TENANTS.get(name, {})} for name in PLANS]
        promises.check("PUT", tenants, operator.put(tenants, json={"plans": PLANS, "tenants": named}), 200)
        for verb in ("suspend", "resume"):
            changed = operator.post(f"{tenants}/acme/{verb}")
            promises.check("POST", f"{tenants}/{{tenant}}/{verb}", changed, 200)
        keys = f"{tenants}/{{tenant}}/keys"
        promises.check("POST", keys, operator.post(f"{tenants}/acme/keys", json={"name": "one"}), 201)
        assert promises.check("GET", keys, operator.get(f"{tenants}/acme/keys"), 200)["keys"]
        grants = f"{tenants}/{{tenant}}/grants"
        for holder in ({}, {"subject": "alice"}):
            form = {"unit": "requests", "amount": 5, "reason": "one", "expires_at": "2099-01-31", **holder}
            promises.check("POST", grants, operator.post(f"{tenants}/acme/grants", json=form), 201)
        assert promises.check("GET", grants, operator.get(f"{tenants}/acme/grants"), 200)["grants"]
        with proxy.client() as client:
            assert promises.check("GET", "/v1/session", client.get("/v1/session"), 200)["grants"]
        overrides = f"{tenants}/{{tenant}}/overrides"
        for what in ({"plan": "single"}, {"limits": {"max_tokens": 9}}):
            answer = operator.put(f"{tenants}/acme/overrides/mallory", json={**what, "until": "2099-01-31"})
            promises.check("PUT", f"{overrides}/{{subject}}", answer, 200)
            assert promises.check("GET", overrides, operator.get(f"{tenants}/acme/overrides"), 200)["overrides"]
        minted = operator.post("/v1/admin/sessions", json={"tenant": "acme", "subject": "bob"})
        promises.check("POST", "/v1/admin/sessions", minted, 201)
        jobs = operator.get("/v1/admin/jobs", params={"tenant": "acme"})
        one = promises.check("GET", "/v1/admin/jobs", jobs, 200)["jobs"][0]["id"]
        promises.check("GET", "/v1/admin/jobs/{job}", operator.get(f"/v1/admin/jobs/{one}"), 200)
        promises.check("GET", "/v1/admin/upstreams", operator.get("/v1/admin/upstreams"), 200)
        usage = operator.get("/v1/admin/usage", params={"tenant": "acme"})
        assert promises.check("GET", "/v1/admin/usage", usage, 200)["grants"]
        statement = operator.get(f"{tenants}/acme/statements/{month_of(proxy)}")
        assert promises.check("GET", f"{tenants}/{{tenant}}/statements/{{month}}", statement, 200)["lines"]
        compared = operator.get("/v1/admin/reconciliation")
        assert promises.check("GET", "/v1/admin/reconciliation", compared, 200)["rows"]
        token = operator.post("/v1/admin/tokens", json={"name": "ops", "role": "viewer"})
        promises.check("POST", "/v1/admin/tokens", token, 201)
        assert promises.check("GET", "/v1/admin/tokens", operator.get("/v1/admin/tokens"), 200)["tokens"]
        assert promises.check("GET", "/v1/admin/usage", operator.get("/v1/admin/usage"), 200)["usage"]
        audit = operator.get("/v1/admin/audit")
        assert promises.check("GET", "/v1/admin/audit", audit, 200)["entries"]
        raise_alert(proxy.settings.stores.database_url.reveal(), "a1", "acme", "", "acme")
        alerts = promises.check("GET", "/v1/admin/alerts", operator.get("/v1/admin/alerts"), 200)["alerts"]
        assert [len(alert["deliveries"]) for alert in alerts] == [2]
        again = operator.post("/v1/admin/alerts/a1/resend")
        promises.check("POST", "/v1/admin/alerts/{alert}/resend", again, 202)


def test_the_answer_to_the_removal_of_a_tenant(proxy: Stack, promises: Promises) -> None:
    with proxy.client(ADMIN_TOKEN) as operator:
        gone = {"plans": PLANS, "tenants": [{"id": "gone", "plan": "acme"}]}
        operator.put("/v1/admin/tenants", json=gone).raise_for_status()
        removed = operator.delete("/v1/admin/tenants/gone")
        promises.check("DELETE", "/v1/admin/tenants/{tenant}", removed, 200)


#: Lists that stay short: the configuration or the caller's span of days limits them.
SHORT = {
    "/v1/session",
    "/v1/endpoints",
    "/v1/statements/{month}",
    "/v1/admin/tenants/{tenant}",
    "/v1/admin/tenants/{tenant}/statements/{month}",
    "/v1/admin/jobs/{job}",
    "/v1/admin/upstreams",
    "/v1/admin/reconciliation",
}


def resolve(part: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, if the part is one."""
    if "$ref" not in part:
        return part
    _, kind, name = part["$ref"].rsplit("/", 2)
    found: dict[str, Any] = document["components"][kind][name]
    return found


def test_every_list_pages_by_cursor(document: dict[str, Any]) -> None:
    paged, whole = set(), set()
    for path, methods in document["paths"].items():
        content = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        named = resolve(content.get("application/json", {}).get("schema", {}), document).get("properties", {})
        if "next_cursor" in named:
            paged.add(path)
            query = {resolve(one, document)["name"] for one in methods["get"]["parameters"]}
            assert {"cursor", "limit"} <= query, path
        elif any(resolve(one, document).get("type") == "array" for one in named.values()):
            whole.add(path)
    assert whole == SHORT and len(paged) > 8


#: The names of moments.
MOMENTS = re.compile(r"at|until|\w+_at")


def test_every_moment_is_described_as_one(document: dict[str, Any]) -> None:
    seen = 0
    # Forms take days as well.
    forms = {form.__name__ for form in FORMS}
    answers = {name: schema for name, schema in document["components"]["schemas"].items() if name not in forms}
    for name, schema in answers.items():
        for property_, described in properties_of(schema):
            if MOMENTS.fullmatch(property_):
                seen += 1
                assert described.get("format") == "date-time", f"{name}.{property_}"
    assert seen > 15


def properties_of(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The properties of a schema and of those inside it."""
    if isinstance(schema, list):
        for one in schema:
            yield from properties_of(one)
    elif isinstance(schema, dict):
        yield from (pair for pair in schema.get("properties", {}).items() if isinstance(schema["properties"], dict))
        for one in schema.values():
            yield from properties_of(one)


def test_calls_of_operations_answer_as_promised(http: httpx.Client, promises: Promises) -> None:
    for path in ("/livez", "/readyz"):
        promises.check("GET", path, http.get(path), 200)


def test_refusals_are_as_promised(proxy: Stack, http: httpx.Client, promises: Promises) -> None:
    run, jobs = f"/fal/run/{NEXT}", "/v1/jobs"
    promises.check("POST", jobs, http.post(jobs, json={"endpoint": NEXT}), 400)
    promises.check("POST", jobs, http.post(jobs, json={"endpoint": "fal-ai/other", "input": {}}), 403)
    promises.check("POST", "/fal/{path}", http.post(run, json={"prompt": 1}), 422)
    promises.check("GET", "/v1/jobs/{id}", http.get("/v1/jobs/never"), 404)
    promises.check("POST", "/v1/uploads", http.post("/v1/uploads", content=b"text"), 415)
    with proxy.client("") as stranger:
        promises.check("GET", "/v1/session", stranger.get("/v1/session"), 401)
    with proxy.client(proxy.token("eve", tenant="single")) as poor:
        poor.post(run, json=asking("What?")).raise_for_status()
        refused = promises.check("POST", "/fal/{path}", poor.post(run, json=asking("What?")), 402)
        assert refused["scope"] == "subject" and refused["retry_after"] > 0


def test_forms_refuse_what_their_schemas_refuse(proxy: Stack, document: dict[str, Any]) -> None:
    forms: list[tuple[str, str, dict[str, Any]]] = [
        ("/v1/sessions", "Mint", {"subject": "bob", "ttl_seconds": 0}),
        ("/v1/sessions", "Mint", {"subject": "bob", "more": 1}),
        ("/v1/sessions", "Mint", {}),
        ("/v1/jobs", "NewJob", {"endpoint": NEXT, "input": []}),
    ]
    with proxy.client(proxy.tenant_key()) as backend:
        for path, name, form in forms:
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            assert not jsonschema_rs.validator_for(schema).is_valid(form), form
            assert backend.post(path, json=form).status_code == 400, form
