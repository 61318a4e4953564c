"""examples/app, built by Vite and served by its FastAPI backend, in Chromium, including the expiry of a session."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import CHELSEA
from tests.clients.expectations import HELD, describes_the_picture
from tests.clients.install import KITS
from tests.examples.projects import EXAMPLES, PYTHON, node_project, started
from tests.server.commands import PLAINLY
from tests.support.limited import NOTHING, account, limited_proxy, operating, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

RESULTS = Path(__file__).parents[2] / "test-results"
VITE = str(KITS / "node_modules" / "vite" / "bin" / "vite.js")
SECOND_IN_LINE = "[[pace hold=IN_QUEUE queue_positions=2 seconds_per_position=3600]]"
SESSION, RENEW = "/api/fal/session", "/v1/sessions/renew"
#: The lifetime of the backend's sessions, in seconds.
TTL = 900


@dataclass
class Site:
    """The app at its own origin, and the proxy at another one."""

    url: str
    proxy: Stack
    folder: Path

    def charged(self, user: str) -> float:
        """The number of calls in a user's account."""
        booked = account(self.folder, "acme", "requests", user)
        assert booked.reserved == NOTHING.reserved
        return booked.used


@pytest.fixture(scope="module")
def site(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    url = f"http://localhost:{port}"
    plans = {"acme": plan(session_ttl_seconds=TTL, quotas=[per("subject", "requests", 100)])}
    allowed = {"PROXY_ALLOWED_ORIGINS": url}
    with (
        limited_proxy(shared_sandbox, folder, plans, environ=allowed) as proxy,
        node_project(EXAMPLES / "app") as project,
    ):
        build = {"PATH": os.environ["PATH"], "VITE_FAL_PROXY_URL": f"{proxy.url}/api/fal/proxy"}
        subprocess.run(["node", VITE, "build"], cwd=project, env=build, check=True, capture_output=True, timeout=60)
        environ = {
            "FAL_PROXY_URL": proxy.url,
            "FAL_PROXY_TENANT_KEY": new_key(proxy),
            "LOGIN_SECRET": "a-secret-of-the-tests",
            "PYTHONPATH": str(EXAMPLES / "minting"),
        }
        command = [PYTHON, "-m", "uvicorn", "--app-dir", "server", "app:app", "--port", str(port)]
        with started(command, project, folder / "log", **environ):
            wait_until(lambda: answers(url), lambda: (folder / "log").read_text())
            yield Site(url, proxy, folder)


def new_key(proxy: Stack) -> str:
    with operating(proxy) as operator:
        key: str = operator.post("/v1/admin/tenants/acme/keys", json={"name": "backend"}).json()["key"]
    return key


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, **PLAINLY).status_code == 200
    return False


class User:
    """A user of the app, who sees labels and roles, with all answers that their browser got."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page = page
        self._answers: list[tuple[str, int]] = []
        self._sandbox = site.proxy.sandbox
        # Other tests may have left jobs that never end.
        self._others = {job["id"] for job in self._sandbox.jobs()}
        page.on("response", lambda answer: self._answers.append((answer.url, answer.status)))
        page.goto(site.url)

    def sign_in(self, name: str, password: str) -> None:
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    def ask(self, question: str) -> None:
        self.page.get_by_label("Picture").set_input_files(CHELSEA)
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Ask").click()

    def answer(self, question: str = "") -> str:
        """The answer to a question: that to the one before may still be there."""
        answer = self.page.get_by_role("region", name="Answer")
        expect(answer).to_contain_text(question)
        return answer.inner_text()

    def running_job(self) -> str:
        """fal's id of the job that the page says is running."""
        expect(self.page.get_by_role("status")).to_have_text("The model looks at the picture")
        (job,) = self.jobs("IN_PROGRESS")
        return job

    def jobs(self, status: str) -> set[str]:
        """fal's ids of the jobs of this test that are in a state."""
        return {job["id"] for job in self._sandbox.jobs() if job["status"] == status} - self._others

    def statuses(self, path: str) -> list[int]:
        """How the calls of a path were answered."""
        return [status for url, status in self._answers if url.endswith(path)]


@pytest.fixture
def user(site: Site, sandbox: SandboxControl, chromium: Browser) -> Iterator[User]:
    # The device's clock moves too.
    site.proxy.clock.catch_up()
    with chromium.new_context() as context:
        yield User(context.new_page(), site)


@pytest.fixture
def alice(user: User) -> User:
    user.sign_in("alice", "wonderland")
    return user


def test_a_user_signs_in_asks_and_sees_each_step(user: User, site: Site) -> None:
    user.sign_in("bob", "wrong")
    expect(user.page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    user.sign_in("bob", "builder")
    user.page.evaluate("""() => {
        window.seen = [];
        const note = () => {
            const text = document.querySelector("[role=status]")?.textContent;
            if (text && text !== seen.at(-1)) seen.push(text);
        };
        new MutationObserver(note).observe(document, { subtree: true, childList: true, characterData: true });
    }""")
    user.ask(f"Which animal is this? {SECOND_IN_LINE}")
    expect(user.page.get_by_role("status")).to_have_text("Waiting in the queue, 1 in front of you")
    (job,) = user.jobs("IN_QUEUE")
    site.proxy.sandbox.move_job(job, "IN_PROGRESS")
    assert user.running_job() == job
    site.proxy.sandbox.move_job(job, "COMPLETED")
    assert describes_the_picture(user.answer())
    seen = user.page.evaluate("seen")
    steps = ["Uploading the picture", "Waiting in the queue", "The model looks at the picture", "Answered"]
    assert list(dict.fromkeys(text.partition(",")[0] for text in seen)) == steps
    user.page.get_by_text("Log of the model").click()
    assert user.page.locator("ol li").count() > 1
    assert site.charged("bob") == 1
    RESULTS.mkdir(exist_ok=True)
    user.page.screenshot(path=RESULTS / "example-app.png", full_page=True)


def test_a_job_whose_session_expired_still_brings_its_answer(alice: User, site: Site) -> None:
    """The session is still valid by the device's clock, so the page relies on the grace period."""
    before = site.charged("alice")
    alice.ask(HELD)
    job = alice.running_job()
    site.proxy.clock.advance(TTL + 60)
    site.proxy.sandbox.move_job(job, "COMPLETED")
    assert describes_the_picture(alice.answer())
    assert alice.statuses(SESSION) == [201] and site.charged("alice") == before + 1
    # The next call meets a 401, and is repeated with a new session.
    alice.ask("And now?")
    wait_until(lambda: alice.page.evaluate("1") and alice.statuses(SESSION) == [201, 201], "no session is minted")
    assert alice.answer("And now?") and site.charged("alice") == before + 2


def test_a_session_is_renewed_while_its_job_runs(alice: User, site: Site) -> None:
    before = site.charged("alice")

    def pass_time(seconds: float) -> None:
        site.proxy.clock.advance(seconds)
        alice.page.clock.set_fixed_time(datetime.fromtimestamp(site.proxy.clock.now(), UTC))

    pass_time(0)
    alice.ask(HELD)
    job = alice.running_job()
    pass_time(TTL - 30)
    site.proxy.sandbox.move_job(job, "COMPLETED")
    assert describes_the_picture(alice.answer())
    wait_until(lambda: alice.page.evaluate("1") and alice.statuses(RENEW) == [201], "the session is not renewed")
    pass_time(60)
    alice.ask("And now?")
    assert alice.answer("And now?")
    assert alice.statuses(SESSION) == [201] and site.charged("alice") == before + 2


def test_a_user_who_is_signed_out_is_asked_to_sign_in(alice: User, site: Site) -> None:
    alice.ask("First?")
    assert alice.answer()
    alice.page.context.clear_cookies()
    site.proxy.clock.advance(TTL + 60)
    alice.ask("Second?")
    expect(alice.page.get_by_role("heading")).to_have_text("Sign in")
    assert alice.statuses(SESSION) == [201, 401]


def test_signing_out(alice: User) -> None:
    alice.page.get_by_role("button", name="Sign out").click()
    expect(alice.page.get_by_role("heading")).to_have_text("Sign in")
    alice.page.reload()
    expect(alice.page.get_by_role("heading")).to_have_text("Sign in")


def test_a_job_is_cancelled(alice: User) -> None:
    alice.ask(HELD)
    alice.running_job()
    alice.page.get_by_role("button", name="Cancel").click()
    expect(alice.page.get_by_role("status")).to_have_text("Cancelled")


def test_a_refusal_is_shown(alice: User) -> None:
    alice.page.get_by_label("Picture").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    alice.page.get_by_role("button", name="Ask").click()
    expect(alice.page.get_by_role("alert")).not_to_be_empty()
    expect(alice.page.get_by_role("button", name="Ask")).to_be_enabled()
