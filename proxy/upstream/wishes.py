"""What callers may wish of fal beside their input: how long its files live, who sees them, and what a plan lets pass.

A wish for files is heeded where it makes them more private or shorter-lived than the plan does, and never the other
way. One that cannot be read is refused: a file that was to be private must not become public for a slip of the pen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from proxy.errors import BadRequest
from proxy.upstream.headers import RawHeaders

LIFECYCLE = "x-fal-object-lifecycle"
PREFERENCE = "x-fal-object-lifecycle-preference"
#: The answer's header that names what was not passed on.
DROPPED = "x-fal-proxy-dropped"
MAX_LIFECYCLE_CHARS = 8192
MAX_RULES = 50
#: Longer than any plan keeps a file.
MAX_SECONDS = 10 * 365 * 86_400
MAX_TAGS, MAX_TAG_BYTES = 10, 1024

Decision = Literal["allow", "hide", "forbid"]
_STRICTNESS: dict[Decision, int] = {"allow": 0, "hide": 1, "forbid": 2}
_TAG = re.compile(r"(?!fal\.)[a-z0-9._-]{1,64}=[\x20-\x2b\x2d-\x7e]{0,256}")
_HINT = re.compile(r"[\x21-\x7e]{1,256}")
_LIFECYCLE_NAMES = frozenset((LIFECYCLE.encode(), PREFERENCE.encode()))


def _is_number(value: object) -> object:
    if isinstance(value, (bool, str)):
        raise ValueError("must be a number")
    return value


class _Rule(BaseModel):
    user: str = Field(pattern=r"^[\x20-\x7e]{1,200}$")
    decision: Decision


class _Acl(BaseModel):
    default: Decision | None = None
    rules: list[_Rule] | None = Field(default=None, max_length=MAX_RULES)


class _Wish(BaseModel):
    """What fal's clients write into the header."""

    model_config = ConfigDict(extra="ignore")
    expiration_duration_seconds: Annotated[float, BeforeValidator(_is_number)] | None = Field(default=None, ge=0)
    initial_acl: _Acl | None = None


@dataclass(frozen=True)
class Lifecycle:
    """How long a file lives, and who may see it.

    Attributes:
        seconds: None for as long as fal likes.
        default: for all whom no rule names.
        rules: by user.
    """

    seconds: int | None = None
    default: Decision = "allow"
    rules: dict[str, Decision] = field(default_factory=dict)

    def combine(self, other: Lifecycle) -> Lifecycle:
        """Return what both want: the shorter life, and the stricter decision about each user."""
        default = _pick_strictest(self.default, other.default)
        users = {user: _pick_strictest(self.decide(user), other.decide(user)) for user in {**self.rules, **other.rules}}
        lives = [seconds for seconds in (self.seconds, other.seconds) if seconds is not None]
        # A rule that says what holds anyway could undo what fal's own default forbids.
        rules = {user: decision for user, decision in users.items() if decision != default}
        return Lifecycle(min(lives, default=None), default, rules)

    def decide(self, user: str) -> Decision:
        return self.rules.get(user, self.default)

    def text(self) -> str:
        """Return the value of the header; '' if there is nothing to say."""
        acl: dict[str, object] = {} if self.default == "allow" else {"default": self.default}
        if self.rules:
            acl["rules"] = [{"user": user, "decision": decision} for user, decision in self.rules.items()]
        wish: dict[str, object] = {} if self.seconds is None else {"expiration_duration_seconds": self.seconds}
        if acl:
            wish["initial_acl"] = acl
        return orjson.dumps(wish).decode() if wish else ""


def of_upload(caller: RawHeaders, expire_seconds: int | None) -> dict[str, str]:
    """Return the headers that tell fal how long to keep an upload and for whom: the plan's, narrowed by the caller's.

    Raises:
        BadRequest: the caller's cannot be read.
    """
    text = reduce(Lifecycle.combine, _lifecycles(caller), Lifecycle(expire_seconds)).text()
    # fal's own clients send both: which of them counts depends on the store behind.
    return {LIFECYCLE: text, PREFERENCE: text} if text else {}


def of_call(caller: RawHeaders, expire_seconds: int | None, passes: frozenset[str]) -> tuple[dict[str, str], str]:
    """Return the headers of a run, submit or stream that its caller wishes, and the names of those that do not pass.

    Args:
        expire_seconds: how long files may live at most; that of uploads, as a plan names no other.
        passes: the names that the plan lets pass.

    Raises:
        BadRequest: one of them cannot be read.
    """
    given = {name for name, _ in caller if name in _OF_CALLS}
    if not given:
        return {}, ""
    sent = {}
    if given & _LIFECYCLE_NAMES:
        wish = reduce(Lifecycle.combine, _lifecycles(caller))
        # What a caller does not wish to be forgotten stays with fal's own terms.
        bound = Lifecycle(expire_seconds if wish.seconds else None)
        sent[PREFERENCE] = wish.combine(bound).text()
    names = {name.decode() for name in given - _LIFECYCLE_NAMES}
    for name in sorted(names & passes):
        values = [value.decode("latin-1") for key, value in caller if key == name.encode()]
        if len(values) != 1 or not _PASSABLE[name].check(values[0]):
            raise BadRequest(f"{name} must be {_PASSABLE[name].what}, once.")
        sent[name] = values[0]
    return {name: value for name, value in sent.items() if value}, ", ".join(sorted(names - passes))


def _lifecycles(raw: RawHeaders) -> list[Lifecycle]:
    """Read the lifecycle that all headers of both names ask for; several narrow each other."""
    return [_parse(name.decode(), value) for name, value in raw if name in _LIFECYCLE_NAMES]


def _parse(name: str, value: bytes) -> Lifecycle:
    try:
        if len(value) > MAX_LIFECYCLE_CHARS:
            raise ValueError("too long")
        wish = _Wish.model_validate(orjson.loads(value))
    except (ValueError, ValidationError):
        example = '{"expiration_duration_seconds": 3600, "initial_acl": {"default": "forbid"}}'
        raise BadRequest(f"{name} must be JSON such as {example}, of {MAX_LIFECYCLE_CHARS} bytes at most.") from None
    acl = wish.initial_acl or _Acl()
    rules: dict[str, Decision] = {}
    for rule in acl.rules or ():
        rules[rule.user] = _pick_strictest(rule.decision, rules.get(rule.user, "allow"))
    # fal takes 0 for "never", which is no wish that a plan would heed.
    seconds = wish.expiration_duration_seconds or None
    lives = None if seconds is None else max(1, int(min(seconds, MAX_SECONDS)))
    return Lifecycle(lives, acl.default or "allow", rules)


def _pick_strictest(one: Decision, other: Decision) -> Decision:
    return max(one, other, key=_STRICTNESS.__getitem__)


def _are_tags(text: str) -> bool:
    """Return whether tags are as fal takes them: `key=value` pairs, none with its own prefix."""
    tags = text.split(",")
    return len(text) <= MAX_TAG_BYTES and len(tags) <= MAX_TAGS and all(map(_TAG.fullmatch, tags))


@dataclass(frozen=True)
class _Passable:
    """A header that a plan may let pass, and what it may say."""

    what: str
    check: Callable[[str], object]


_PASSABLE = {
    "x-fal-store-io": _Passable("0", "0".__eq__),
    "x-fal-no-retry": _Passable("1, true or yes", ("1", "true", "yes").__contains__),
    "x-fal-runner-hint": _Passable("1 to 256 printable ASCII characters without spaces", _HINT.fullmatch),
    "x-fal-tags": _Passable(
        f"at most {MAX_TAGS} key=value pairs, comma-separated, of {MAX_TAG_BYTES} bytes, none beginning with 'fal.'",
        _are_tags,
    ),
}
#: What fal heeds and no plan lets pass.
_NEVER_PASSED = (
    "x-fal-retry-config",
    "x-fal-user-id",
    "x-app-fal-disable-fallback",
    "x-app-fal-can-disable-filter",
)
_OF_CALLS = _LIFECYCLE_NAMES | {name.encode() for name in (*_PASSABLE, *_NEVER_PASSED)}
