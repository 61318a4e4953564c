"""A suspended tenant is refused with every credential on every route, and loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.commands import Commands
from tests.support.images import png
from tests.support.limited import NEXT, Client, assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack

PAGE = "https://app.acme.example"
PLANS = {"acme": plan(), "globex": plan()}
OWNERS = {"acme": {"allowed_origins": [PAGE], "guests": {"enabled": True, "plan": "acme", "per_address": None}}}
HELD = "[[pace hold=IN_QUEUE]]"
TENANTS = "/v1/admin/tenants"
PICTURE = {"content_type": "image/png", "file_name": "a.png"}


@pytest.fixture(scope="module")
def shared_proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("suspended"), PLANS, tenants=OWNERS) as stack:
        yield stack


@pytest.fixture
def proxy(shared_proxy: Stack, sandbox: SandboxControl) -> Iterator[Stack]:
    yield shared_proxy
    change(shared_proxy, "resume")


def change(proxy: Stack, verb: str, tenant: str = "acme") -> dict[str, object]:
    with operating(proxy) as operator:
        answer = operator.post(f"{TENANTS}/{tenant}/{verb}")
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


Ask = Callable[[], httpx.Response]


def asks_with(client: httpx.Client) -> dict[str, Ask]:
    """The calls that a credential allows."""
    return {
        "facts": lambda: client.get("/v1/session"),
        "run": lambda: client.post(f"/fal/run/{NEXT}", json={"image_url": "data:,", "prompt": "?"}),
        "native job": lambda: client.post("/v1/jobs", json={"endpoint": NEXT, "input": {}}),
        "jobs": lambda: client.get("/v1/jobs"),
        "usage": lambda: client.get("/v1/usage"),
        "endpoints": lambda: client.get("/v1/endpoints"),
        "slot": lambda: client.post("/fal/rest/storage/upload/initiate", json=PICTURE),
        "upload token": lambda: client.post("/fal/rest/storage/auth/token", json={}),
        "upload": lambda: client.post("/v1/uploads", content=png(50), headers={"content-type": "image/png"}),
        "mint": lambda: client.post("/v1/sessions", json={"subject": "bob"}),
        "renew": lambda: client.post("/v1/sessions/renew"),
        "cookie": lambda: client.post("/v1/sessions/cookie"),
        "sign out": lambda: client.delete("/v1/session"),
    }


def assert_refused(answer: httpx.Response) -> None:
    assert_refused_with(answer, 403, "tenant_suspended")


@pytest.mark.parametrize("kind", ["session", "narrowed", "guest", "key", "cookie"])
def test_every_credential_is_refused_everywhere_until_the_tenant_is_resumed(proxy: Stack, kind: str) -> None:
    headers: dict[str, str] = {}
    if kind == "guest":
        with proxy.client("", headers={"origin": PAGE}) as page:
            token = page.post("/v1/sessions/guest").raise_for_status().json()["token"]
    elif kind == "cookie":
        token, headers = "", {"cookie": proxy.cookie(), "origin": PAGE}
    else:
        own = {"session": proxy.token, "narrowed": lambda: proxy.token(endpoints=[NEXT]), "key": proxy.tenant_key}
        token = own[kind]()
    with proxy.client(token, headers=headers) as client:
        assert client.get("/v1/session").status_code == 200
        change(proxy, "suspend")
        proxy.sandbox.forget()
        for name, ask in asks_with(client).items():
            answer = ask()
            assert answer.json().get("error_type") == "tenant_suspended", (name, answer.text)
            assert_refused(answer)
        assert proxy.sandbox.requests() == []
        change(proxy, "resume")
        assert client.get("/v1/session").status_code == 200


def test_nothing_is_minted_for_a_suspended_tenant(proxy: Stack, tmp_path: Path, commands: Commands) -> None:
    minting = {"tenant": "acme", "subject": "bob"}
    environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal(), "PROXY_SESSION_SECRETS": SECRET}
    command = ("sessions", "mint", "--tenant", "acme", "--subject", "bob")
    with operating(proxy) as operator, proxy.client("", headers={"origin": PAGE}) as page:
        change(proxy, "suspend")
        assert_refused(operator.post("/v1/admin/sessions", json=minting))
        assert_refused(page.post("/v1/sessions/guest"))
        assert_refused(page.post("/v1/sessions/guest", json={"tenant": "acme"}))
        done = commands(*command, environ=environ, cwd=tmp_path)
        assert (done.code, done.stdout) == (1, "") and "suspended" in done.stderr
        change(proxy, "resume")
        assert operator.post("/v1/admin/sessions", json=minting).status_code == 201
        assert page.post("/v1/sessions/guest").status_code == 201
        assert commands(*command, environ=environ, cwd=tmp_path).code == 0


def test_upload_slots_and_tokens_issued_before_are_refused(proxy: Stack) -> None:
    """The address of a slot and an upload token are credentials of their own."""
    typed = {"content-type": "image/png"}
    with proxy.client() as alice, proxy.client("") as stranger:
        slot = alice.post("/fal/rest/storage/upload/initiate", json=PICTURE).json()["upload_url"]
        bearer = alice.post("/fal/rest/storage/auth/token", json={}).json()["token"]
        upload = {**typed, "authorization": f"Bearer {bearer}"}
        begun = alice.post("/fal/rest/storage/upload/initiate-multipart", json=PICTURE).json()["upload_url"]
        whole = {"parts": [stranger.put(f"{begun}/1", content=png(50)).json()]}
        change(proxy, "suspend")
        assert_refused(stranger.post(f"{begun}/complete", json=whole))
        assert_refused(stranger.put(slot, content=png(50), headers=typed))
        assert_refused(stranger.post("/fal/cdn/files/upload", content=png(50), headers=upload))
        change(proxy, "resume")
        assert stranger.post(f"{begun}/complete", json=whole).status_code == 200
        assert stranger.put(slot, content=png(50), headers=typed).status_code == 200
        assert stranger.post("/fal/cdn/files/upload", content=png(50), headers=upload).status_code == 200


def test_a_job_goes_on_and_its_answer_waits(proxy: Stack) -> None:
    with Client(proxy, proxy.token()) as alice:
        job = alice.submitted(HELD)
        for _ in range(3):
            assert alice.status(job).status_code == 202
        change(proxy, "suspend")
        # A poll whose answer is cached is refused too.
        assert_refused(alice.status(job))
        assert_refused(alice.result(job))
        assert_refused(alice.cancel(job))
        proxy.sandbox.move_job(job, "COMPLETED")
        assert_refused(alice.result(job))
        change(proxy, "resume")
        assert alice.result(job).status_code == 200
        assert alice.slots() == (0, 0)


def test_an_expired_session_has_no_grace_period(proxy: Stack) -> None:
    with Client(proxy, proxy.token(ttl_seconds=60)) as alice:
        job = alice.submitted(HELD)
        proxy.clock.advance(61)
        assert alice.status(job).status_code == 202
        change(proxy, "suspend")
        assert_refused(alice.status(job))


def test_other_tenants_and_the_operator_are_not_affected(proxy: Stack) -> None:
    with operating(proxy) as operator, proxy.client(proxy.token(tenant="globex")) as other:
        change(proxy, "suspend")
        assert other.get("/v1/session").status_code == 200
        assert operator.get("/v1/admin/usage", params={"tenant": "acme"}).status_code == 200
        assert operator.get("/v1/admin/jobs", params={"tenant": "acme"}).status_code == 200
        made = operator.post(f"{TENANTS}/acme/keys", json={})
        assert made.status_code == 201
        with proxy.client(made.json()["key"]) as backend:
            assert_refused(backend.get("/v1/session"))


def test_a_suspension_is_shown_with_the_time_of_its_start(proxy: Stack) -> None:
    with operating(proxy) as operator:
        assert operator.get(f"{TENANTS}/acme").json()["suspended_at"] is None
        since = change(proxy, "suspend")["suspended_at"]
        assert isinstance(since, str)
        proxy.clock.advance(3600)
        assert change(proxy, "suspend")["suspended_at"] == since
        assert operator.get(f"{TENANTS}/acme").json()["suspended_at"] == since
        listed = {one["id"]: one["suspended_at"] for one in operator.get(TENANTS).json()["tenants"]}
        assert listed == {"acme": since, "globex": None}
        assert change(proxy, "resume")["suspended_at"] is None
        assert change(proxy, "resume")["suspended_at"] is None
        for verb in ("suspend", "resume"):
            assert_refused_with(operator.post(f"{TENANTS}/nobody/{verb}"), 404, "not_found")


def test_only_the_operator_suspends(proxy: Stack) -> None:
    with proxy.client(proxy.tenant_key("globex")) as backend:
        for verb in ("suspend", "resume"):
            assert_refused_with(backend.post(f"{TENANTS}/acme/{verb}"), 401, "unauthenticated")


def test_a_plan_file_that_is_applied_again_does_not_resume_it(sandbox: SandboxControl, tmp_path: Path) -> None:
    named = [{"id": name, "plan": name, **OWNERS.get(name, {})} for name in PLANS]
    with limited_proxy(sandbox, tmp_path, PLANS, tenants=OWNERS) as proxy, operating(proxy) as operator:
        change(proxy, "suspend")
        for file in ({"plans": PLANS, "tenants": named}, {"plans": PLANS, "tenants": [{**named[0], "plan": "globex"}]}):
            assert operator.put(TENANTS, json=file).status_code == 200
            with proxy.client() as alice:
                assert_refused(alice.get("/v1/session"))
    # Nor does a start of the server, which applies its own file.
    with limited_proxy(sandbox, tmp_path, PLANS, tenants=OWNERS) as proxy, proxy.client() as alice:
        assert_refused(alice.get("/v1/session"))
        change(proxy, "resume")
        assert alice.get("/v1/session").status_code == 200


def test_commands_suspend_on_every_server_within_five_seconds(proxy: Stack, tmp_path: Path, commands: Commands) -> None:
    environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}

    def run(*arguments: str) -> str:
        done = commands("tenants", *arguments, environ=environ, cwd=tmp_path)
        assert done.code == 0, done.stderr
        return done.stdout.strip()

    with proxy.client() as alice:
        assert alice.get("/v1/session").status_code == 200
        assert run("suspend", "acme") == "suspended"
        # The server's clock stands still unless the test moves it.
        proxy.clock.advance(5)
        assert_refused(alice.get("/v1/session"))
        assert run("list") == "acme\tacme\tsuspended\nglobex\tglobex"
        assert '"suspended_at":"' in run("show", "acme", "--json")
        assert run("resume", "acme") == "resumed"
        proxy.clock.advance(5)
        assert alice.get("/v1/session").status_code == 200
    for verb in ("suspend", "resume"):
        done = commands("tenants", verb, "nobody", environ=environ, cwd=tmp_path)
        assert (done.code, done.stdout) == (1, "") and "there is no tenant nobody" in done.stderr
