"""What may go into a model: the endpoint's schema, and the plan's ceilings.

What was checked is what is sent: the body is parsed once here and encoded again for fal, so that no two parsers can
read one text differently (a repeated key, for example). For the same reason a whole number leaves without a point, and
a URL in the form in which it was judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import orjson

from proxy.catalog import MAX_PROBLEMS, TOKEN_FIELDS, Endpoint
from proxy.catalog.schema import Shape, is_url_name
from proxy.errors import BadRequest, Detail, InvalidInput, UnsupportedMediaType
from proxy.tenants.addresses import is_below, public_url
from proxy.tenants.plans import Plan

#: The most tokens of one call, whatever a plan or an endpoint's schema allows: this number is reserved from a quota.
MAX_TOKENS = 1_000_000
#: URLs in one input, and levels of it. No model takes more.
MAX_URLS, MAX_DEPTH = 100, 64
#: Whole numbers above are not the same for every reader of JSON, and no field of a model means them.
_MAX_INTEGER = 2.0**63
#: C0 controls and the space.
TRIMMED = "".join(map(chr, range(33)))
_LOOKED_AT = frozenset({str, float, dict, list})
_NOTHING_KNOWN = Shape()
Where = tuple[str | int, ...]


def parse_json(body: bytes | bytearray, content_type: str | None) -> Any:
    """Parse the JSON of a request.

    Raises:
        UnsupportedMediaType: it is declared to be something else.
        BadRequest: it is not JSON.
    """
    if content_type is not None and content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("The body must be JSON, with content-type: application/json.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise BadRequest(f"The body is not JSON {_describe(problem)}.") from None


def _describe(problem: orjson.JSONDecodeError) -> str:
    """Where a text stops being JSON, and why: the parser's reasons quote nothing of it."""
    reason = problem.msg.strip().rstrip(".")
    first = reason[:1] if reason[1:2].isupper() else reason[:1].lower()
    return f"(line {problem.lineno}, column {problem.colno}): {first}{reason[1:]}"


def check_input(endpoint: Endpoint, plan: Plan, body: Any, *, own_files: str) -> dict[str, Any]:
    """Return the input as it may be sent to fal, with the token ceiling filled in where it was left to fal's default.

    `own_files` is where uploaded files lie: their URLs are always good.

    Raises:
        InvalidInput: the schema or a ceiling of the plan is broken; every problem is listed.
        BadRequest: it is nested too deeply.
    """
    problems = endpoint.problems(body)
    if isinstance(body, dict):
        scan = _Scan(plan, f"{own_files}/")
        body = scan.object(endpoint.shape, body, ())
        more = [*_tokens_over(plan, body), *_prompt_over(plan, body), *scan.problems]
        for problem in more:
            # One sentence a field: what its schema says of it comes first.
            if problem["loc"] not in [known["loc"] for known in problems]:
                problems.append(problem)
    if problems:
        raise InvalidInput(problems[:MAX_PROBLEMS])
    return _with_token_ceiling(endpoint, plan, body)


def _with_token_ceiling(endpoint: Endpoint, plan: Plan, body: dict[str, Any]) -> dict[str, Any]:
    name = endpoint.token_field
    if plan.max_tokens is None or name is None or any(field in body for field in TOKEN_FIELDS):
        return body
    most = min(plan.max_tokens, MAX_TOKENS)
    return {**body, name: min(most, endpoint.default_tokens or most)}


def _tokens_over(plan: Plan, body: Mapping[str, Any]) -> list[Detail]:
    most = MAX_TOKENS if plan.max_tokens is None else min(plan.max_tokens, MAX_TOKENS)
    problems = []
    for name in TOKEN_FIELDS:
        if name not in body:
            continue
        # Whatever an operator's own schema says: this number is reserved from a quota.
        value = body[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(_problem((name,), "This must be a whole number above 0", "int_type"))
        elif value > most:
            whose = "A call may ask for" if most == MAX_TOKENS else "This plan allows"
            problems.append(_problem((name,), f"{whose} {most} tokens at most", "less_than_equal"))
    return problems


def _prompt_over(plan: Plan, body: Mapping[str, Any]) -> list[Detail]:
    prompt = body.get("prompt")
    if isinstance(prompt, str) and len(prompt) > plan.max_prompt_chars:
        return [_problem(("prompt",), f"This plan allows {plan.max_prompt_chars} characters", "string_too_long")]
    return []


@dataclass(slots=True)
class _Scan:
    """One pass over an input: judges the URLs in it, and takes the point from whole numbers.

    Gives what is to be sent, which is the same object where nothing changed.
    """

    plan: Plan
    own_files: str
    problems: list[Detail] = field(default_factory=list)
    _urls: int = 0

    def object(self, shape: Shape, given: dict[str, Any], where: Where) -> dict[str, Any]:
        sent = given
        for name, value in given.items():
            if value.__class__ not in _LOOKED_AT:
                continue
            known = shape.properties.get(name)
            if known is None:
                known = shape.others or _NOTHING_KNOWN
                is_url = known.is_url or is_url_name(name)
            else:
                is_url = known.is_url
            # Text that is no URL, as most is, is done with here.
            if is_url or value.__class__ is not str:
                found = self._value(known, value, (*where, name), is_url=is_url)
                if found is not value:
                    sent = {**given} if sent is given else sent
                    sent[name] = found
        return sent

    def _value(self, shape: Shape, value: Any, where: Where, *, is_url: bool) -> Any:
        kind = type(value)
        if kind is str:
            return self._url(value, where) if is_url or shape.is_url else value
        if kind is float:
            is_whole = shape.is_integer or (len(where) == 1 and where[0] in TOKEN_FIELDS)
            return self._to_whole(value, where) if is_whole and value.is_integer() else value
        if kind is not dict and kind is not list:
            return value
        if len(where) > MAX_DEPTH:
            raise BadRequest(f"The input is nested too deeply; use at most {MAX_DEPTH} levels.")
        if kind is dict:
            return self.object(shape, value, where)
        items = shape.items or _NOTHING_KNOWN
        sent = [self._value(items, one, (*where, at), is_url=is_url) for at, one in enumerate(value)]
        return value if all(map(is_, sent, value)) else sent

    def _to_whole(self, value: float, where: Where) -> float | int:
        if -_MAX_INTEGER < value < _MAX_INTEGER:
            return int(value)
        self._complain(where, "This number is out of range", "int_parsing_size")
        return value

    def _url(self, given: str, where: Where) -> str:
        self._urls += 1
        if self._urls > MAX_URLS:
            if self._urls == MAX_URLS + 1:
                self._complain(where, f"An input may name {MAX_URLS} URLs", "too_many_urls")
            return given
        try:
            return _to_sendable_url(self.plan, given, self.own_files)
        except ValueError as problem:
            is_picture = any("image" in str(step) for step in where)
            self._complain(where, str(problem), "image_url" if is_picture else "url")
            return given

    def _complain(self, where: Where, message: str, kind: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(_problem(where, message, kind))


def _to_sendable_url(plan: Plan, given: str, own_files: str) -> str:
    """Return a URL of an input as it may be sent.

    Raises:
        ValueError: it may not; says why.
    """
    # As browsers do (https://url.spec.whatwg.org/#concept-basic-url-parser): `base64` ends its output with a line end.
    url = given.strip(TRIMMED) if given[:1] <= " " or given[-1:] <= " " else given
    if url.startswith(own_files) and is_below(url, own_files[:-1]):
        return url
    scheme, colon, _ = url[:8].lower().partition(":")
    if not colon or scheme not in plan.image_schemes:
        raise ValueError(f"Give a URL with one of these schemes: {', '.join(sorted(plan.image_schemes))}")
    if scheme != "data":
        sent = public_url(url)
        if plan.image_hosts is not None:
            plan.image_hosts.check(sent)
        return sent
    if len(url) > plan.max_data_uri_bytes:
        raise ValueError(f"This plan allows data URIs of {plan.max_data_uri_bytes} bytes; upload the file")
    if not url.isascii():
        raise ValueError("A data URI has ASCII characters only")
    return url


def _problem(where: Sequence[str | int], message: str, kind: str) -> Detail:
    return {"loc": ["body", *where], "msg": message, "type": kind}
