"""Session tokens: which verify, which do not, and the reason that a refusal gives."""

from __future__ import annotations

import hashlib
import random
import string

import pytest
from itsdangerous import URLSafeSerializer

from proxy.auth.cookies import HOST_NAME
from proxy.auth.sessions import KEPT, MAX_TOKEN_LENGTH, SESSION_SALT, UPLOAD_SALT, Sessions, is_subject
from proxy.errors import BadRequest, SessionExpired, Unauthenticated
from proxy.settings import Secret
from tests.support.clock import MovableClock

OLD, NEW = Secret("o" * 40), Secret("n" * 40)
ALPHABET = string.ascii_letters + string.digits + "-_"


def sign(payload: object, salt: str = SESSION_SALT) -> str:
    """A token as this program signs them, around any payload."""
    how = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return str(URLSafeSerializer(NEW.reveal(), salt=salt, signer_kwargs=how).dumps(payload))


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


def test_a_minted_token_says_what_was_put_in(clock: MovableClock) -> None:
    sessions = Sessions([NEW], clock)
    token, minted = sessions.mint("acme", "alice@example.com", 60, endpoints=["fal-ai/llava-next"], guest=True)
    assert sessions.verify(token) == minted
    assert minted.endpoints == ("fal-ai/llava-next",) and minted.guest and minted.subject == "alice@example.com"


def test_the_newest_secret_signs_and_all_of_them_verify(clock: MovableClock) -> None:
    yesterday, _ = Sessions([OLD], clock).mint("acme", "alice", 60)
    today = Sessions([NEW, OLD], clock)
    assert today.verify(yesterday).subject == "alice"
    fresh, _ = today.mint("acme", "bob", 60)
    assert Sessions([NEW], clock).verify(fresh).subject == "bob"
    with pytest.raises(Unauthenticated):
        Sessions([OLD], clock).verify(fresh)


def test_a_session_ends_at_its_second(clock: MovableClock) -> None:
    sessions = Sessions([NEW], clock)
    token, _ = sessions.mint("acme", "alice", 60)
    clock.advance(59)
    sessions.verify(token)
    clock.advance(1)
    with pytest.raises(SessionExpired):
        sessions.verify(token)


def test_a_verified_token_is_remembered_for_its_own_secrets_only(clock: MovableClock) -> None:
    token, minted = Sessions([NEW], clock).mint("acme", "alice", 60)
    first, second = Sessions([NEW], clock), Sessions([OLD], clock)
    for _ in range(2):
        assert first.verify(token) == minted
        with pytest.raises(Unauthenticated):
            second.verify(token)
        with pytest.raises(Unauthenticated):
            first.verify(token[:-4] + "AAAA")
    assert token not in repr(vars(first))


def test_no_flood_of_tokens_is_kept(clock: MovableClock) -> None:
    sessions = Sessions([NEW], clock)
    for number in range(KEPT + 10):
        sessions.verify(sign({"i": str(number), "t": "acme", "s": "alice", "a": 0, "x": 9e12}))
    for number in range(10):
        with pytest.raises(Unauthenticated):
            sessions.verify(f"forged-{number}")
    assert sessions._read.cache_info().currsize == KEPT


@pytest.mark.parametrize("salt", [SESSION_SALT, UPLOAD_SALT])
def test_every_changed_character_is_noticed(clock: MovableClock, salt: str) -> None:
    """Also the last one, whose lowest bits base64 does not read."""
    sessions = Sessions([NEW], clock)
    token = sessions.sign(sessions.mint("acme", "alice", 60)[1], salt)
    for at in range(len(token)):
        for other in ALPHABET if at == len(token) - 1 else "AB":
            if token[at] != other:
                with pytest.raises(Unauthenticated):
                    sessions.verify(token[:at] + other + token[at + 1 :], salt)
    sessions.verify(token, salt)


@pytest.mark.parametrize("salt", [SESSION_SALT, UPLOAD_SALT])
@pytest.mark.parametrize("more", ["=", "==", "*", " ", "\n", ".", "%3D", "A"])
def test_a_token_has_one_spelling(clock: MovableClock, salt: str, more: str) -> None:
    """base64 decoders skip padding, and characters outside their alphabet."""
    sessions = Sessions([NEW], clock)
    token = sessions.sign(sessions.mint("acme", "alice", 60)[1], salt)
    payload, _, signature = token.rpartition(".")
    spellings = [token + more, f"{payload}.{more}{signature}", f"{payload}.{signature[:9]}{more}{signature[9:]}"]
    for spelling in (*spellings, more + token, f"{payload}{more}.{signature}"):
        with pytest.raises(Unauthenticated):
            sessions.verify(spelling, salt)
    assert sessions.verify(token, salt).subject == "alice"


def test_a_session_is_never_younger_than_the_revocation_that_follows_it(clock: MovableClock) -> None:
    for _ in range(20):
        clock.advance(0.0007)
        assert Sessions([NEW], clock).mint("acme", "alice", 60)[1].issued_at <= clock.now()


@pytest.mark.parametrize("token", ["", ".", "a.b", "é", "x" * 5000, "null", "fpk_x"])
def test_a_malformed_token_is_refused(token: str, clock: MovableClock) -> None:
    with pytest.raises(Unauthenticated):
        Sessions([NEW], clock).verify(token)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "text",
        {},
        {"i": "1", "t": "acme", "s": "alice", "a": 0},
        {"i": "1", "t": "acme", "s": 7, "a": 0, "x": 9e12},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": "never"},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12, "e": [7]},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12, "e": 7},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12, "q": [["requests"]]},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12, "q": [["requests", "5"]]},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12, "q": [[5, 5]]},
        {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12, "k": [5]},
    ],
)
def test_a_good_signature_over_something_else_is_refused(payload: object, clock: MovableClock) -> None:
    with pytest.raises(Unauthenticated):
        Sessions([NEW], clock).verify(sign(payload))


def test_a_signature_for_another_purpose_is_refused(clock: MovableClock) -> None:
    payload = {"i": "1", "t": "acme", "s": "alice", "a": 0, "x": 9e12}
    with pytest.raises(Unauthenticated):
        Sessions([NEW], clock).verify(sign(payload, salt="other"))


def test_no_error_quotes_the_token(clock: MovableClock) -> None:
    sessions = Sessions([NEW], clock)
    token, _ = sessions.mint("acme", "alice", 60)
    with pytest.raises(Unauthenticated) as caught:
        sessions.verify(token + "x")
    assert token not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("subject", ["a", "alice", "user 7", "ü", "0b5c…", "a" * 200])
def test_these_are_subjects(subject: str) -> None:
    assert is_subject(subject)


@pytest.mark.parametrize("subject", ["", " a", "a ", "a\nb", "a\x00", "\x7f", "a" * 201, "a\udc80b", "\ud800", None, 7])
def test_these_are_no_subjects(subject: object) -> None:
    assert not is_subject(subject)


def test_a_token_that_is_too_long_to_be_read_is_not_minted(clock: MovableClock) -> None:
    sessions = Sessions([NEW], clock)
    letters = random.Random(7)
    endpoints = ["fal-ai/" + "".join(letters.choices(string.ascii_lowercase, k=150)) for _ in range(40)]
    with pytest.raises(BadRequest, match=r"longer than 4000 characters.*fewer endpoints"):
        sessions.mint("acme", "alice", 60, endpoints=endpoints)
    token, _ = sessions.mint("acme", "alice", 60, endpoints=endpoints[:20])
    assert sessions.verify(token).endpoints == tuple(endpoints[:20])


def test_the_longest_token_is_still_read_after_its_renewal_and_fits_a_cookie(clock: MovableClock) -> None:
    """With names that do not compress, of each length about the longest that is minted."""
    sessions, letters = Sessions([NEW], clock), random.Random(11)
    clock.advance(0.25)
    lengths = []
    for most in range(40, 90, 7):
        endpoints = ["".join(letters.choices(ALPHABET, k=most)) for _ in range(90)]
        while endpoints:
            try:
                token, session = sessions.mint("acme", "alice", 599.123, endpoints=endpoints)
            except BadRequest:
                endpoints[-1:] = [endpoints[-1][:-1]] if len(endpoints[-1]) > 1 else []
                continue
            break
        clock.advance(7.001)
        renewed, _ = sessions.renew(session, 86_400.0, 30 * 86_400.0)
        assert sessions.verify(renewed).endpoints == tuple(endpoints)
        assert len(f"{HOST_NAME}={renewed}") <= MAX_TOKEN_LENGTH
        lengths.append(len(token))
    assert max(lengths) > 3990
