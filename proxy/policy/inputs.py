"""What may go into a model: the endpoint's schema, and the plan's ceilings.

What was checked is what is sent: the body is parsed once here and encoded again for fal, so that no two parsers can
read one text differently (a repeated key, for example).
"""

from __future__ import annotations

import ipaddress
import socket
import unicodedata
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson

from proxy.catalog import TOKEN_FIELDS, Endpoint
from proxy.errors import BadRequest, Detail, InvalidInput, UnsupportedMediaType
from proxy.policy.plans import Plan

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: What is given out of IPv6 at all, and its translation of IPv4 (NAT64).
_UNICAST, _TRANSLATED = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96")


def parse_json(body: bytes, content_type: str | None) -> Any:
    """The JSON of a request.

    Raises:
        UnsupportedMediaType: it is declared to be something else.
        BadRequest: it is not JSON.
    """
    if content_type is not None and content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("The body must be JSON, with content-type: application/json.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise BadRequest(f"The body is not JSON (line {problem.lineno}, column {problem.colno}).") from None


def check_input(endpoint: Endpoint, plan: Plan, body: Any, *, own_files: str) -> dict[str, Any]:
    """The input as it may be sent to fal, with the token ceiling filled in where it was left to fal's default.

    `own_files` is where uploaded files lie: their URLs are always good.

    Raises:
        InvalidInput: the schema or a ceiling of the plan is broken; every problem is listed.
    """
    problems = endpoint.problems(body)
    if isinstance(body, dict):
        told = [problem["loc"] for problem in problems]
        more = [*_tokens_over(plan, body), *_prompt_over(plan, body), *_bad_images(plan, body, own_files)]
        # One sentence a field: what its schema says of it comes first.
        problems += [problem for problem in more if problem["loc"] not in told]
    if problems:
        raise InvalidInput(problems)
    return _with_token_ceiling(endpoint, plan, body)


def _with_token_ceiling(endpoint: Endpoint, plan: Plan, body: dict[str, Any]) -> dict[str, Any]:
    name = endpoint.token_field
    if plan.max_tokens is None or name is None or any(field in body for field in TOKEN_FIELDS):
        return body
    return {**body, name: min(plan.max_tokens, endpoint.default_tokens or plan.max_tokens)}


def _tokens_over(plan: Plan, body: dict[str, Any]) -> list[Detail]:
    most = plan.max_tokens
    problems = []
    for name in (name for name in TOKEN_FIELDS if name in body):
        # Whatever an operator's own schema says: this number is reserved from a quota.
        value = body[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer() or value < 1:
            problems.append(_problem([name], "This must be a whole number above 0", "int_type"))
        elif most is not None and value > most:
            problems.append(_problem([name], f"This plan allows {most} tokens at most", "less_than_equal"))
    return problems


def _prompt_over(plan: Plan, body: dict[str, Any]) -> list[Detail]:
    prompt = body.get("prompt")
    if isinstance(prompt, str) and len(prompt) > plan.max_prompt_chars:
        return [_problem(["prompt"], f"This plan allows {plan.max_prompt_chars} characters", "string_too_long")]
    return []


def _bad_images(plan: Plan, body: dict[str, Any], own_files: str) -> list[Detail]:
    """fal fetches these addresses: none may lead it, or us by its name, to a place that is not public."""
    places: list[tuple[list[str | int], object]] = [(["image_url"], body.get("image_url"))]
    images = body.get("images")
    for at, image in enumerate(images if isinstance(images, list) else []):
        places.append((["images", at, "image_url"], image.get("image_url") if isinstance(image, dict) else None))
    others = [(where, url) for where, url in places if isinstance(url, str) and not url.startswith(f"{own_files}/")]
    found = [(where, _image_problem(plan, url)) for where, url in others]
    return [_problem(where, message, "image_url") for where, message in found if message]


def _image_problem(plan: Plan, url: str) -> str | None:
    scheme, colon, _ = url[:8].lower().partition(":")
    if not colon or scheme not in plan.image_schemes:
        return f"A picture is given as a URL with one of these schemes: {', '.join(sorted(plan.image_schemes))}"
    if scheme == "data":
        most = plan.max_data_uri_bytes
        return f"This plan allows data URIs of {most} bytes; upload the picture" if len(url) > most else None
    return _address_problem(url)


def _address_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    # What some would decode or cut off, and others not, means two places.
    if not host or not url.isprintable() or any(character in "\\ " for character in url) or "%" in host:
        return "This is not a URL"
    if parts.username is not None or parts.password is not None:
        return "A picture's URL must not carry credentials"
    return None if _is_public(host) else "A picture's URL must lead to a public address"


@lru_cache(maxsize=4096)
def _is_public(host: str) -> bool:
    """Whether a literal address is a public one; names are fal's to resolve. Octal, hex and short forms count too."""
    # As resolvers see it: full-width digits and dots are digits and dots.
    name = unicodedata.normalize("NFKC", host).replace("\u3002", ".").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return False
    address = _address(name)
    if address is None:
        return True
    if isinstance(address, ipaddress.IPv6Address) and not (address in _UNICAST or address in _TRANSLATED):
        return False
    return all(one.is_global and not one.is_multicast for one in (address, *_inside(address)))


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    try:
        # What C libraries take for an IPv4 address: 127.1, 0x7f000001, 2130706433, 0177.0.0.1.
        return ipaddress.ip_address(socket.inet_aton(name))
    except OSError:
        return None


def _inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address leads to, by translation or a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    if address in _TRANSLATED:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [*filter(None, [address.sixtofour]), *(address.teredo or ())]


def _problem(where: list[str | int], message: str, kind: str) -> Detail:
    return {"loc": ["body", *where], "msg": message, "type": kind}
