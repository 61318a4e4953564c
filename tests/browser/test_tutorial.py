"""docs/tutorial.md in Chromium, step by step, unchanged apart from the ports and the key."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import CHELSEA
from tests.clients.expectations import describes_the_picture
from tests.server.commands import PLAINLY, PROXY, Server, serving
from tests.support.servers import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "proxy" / "playground" / "web"
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
FILES = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', TUTORIAL, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for script in re.findall(r"^```sh\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    for line in script.splitlines()
]


def command(part: str) -> str:
    """The one line of the tutorial that contains `part`."""
    (line,) = [line for line in COMMANDS if part in line]
    return line


def variables_of(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(line) if re.match(r"[A-Z_]+=", word))


class App:
    """The reader's project, with the addresses of this test."""

    def __init__(self, folder: Path, proxy: Server, port: int) -> None:
        self.folder, self.url, self._port = folder, f"http://localhost:{port}", port
        self._proxy_url = proxy.url
        for name, text in FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(self.localized(text))
        # What `npm install` of the tutorial brings.
        (folder / "node_modules").symlink_to(PAGE / "node_modules", target_is_directory=True)
        subprocess.run(shlex.split(command("npx esbuild")), cwd=folder, check=True, capture_output=True, timeout=60)

    def localized(self, text: str) -> str:
        return text.replace("http://127.0.0.1:8787", self._proxy_url).replace("3000", str(self._port))

    @contextlib.contextmanager
    def running(self, key: str) -> Iterator[None]:
        line = self.localized(command("uvicorn server:app")).replace("fpk_…", key)
        program = line[line.index("uvicorn ") :]
        environ = {"PATH": os.environ["PATH"], **variables_of(line)}
        arguments = [sys.executable, "-m", *shlex.split(program)]
        with subprocess.Popen(arguments, cwd=self.folder, env=environ, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(self._answers, "the backend did not start")
                yield
            finally:
                process.kill()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url, **PLAINLY).status_code == 200
        return False


def ask(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_label("Picture").set_input_files(CHELSEA)
    page.get_by_role("button", name="Ask").click()


def test_the_readers_own_page_shows_an_answer(chromium: Browser, tmp_path: Path) -> None:
    dev, folder, port = tmp_path / "dev", tmp_path / "my-app", free_port()
    dev.mkdir()
    folder.mkdir()
    environ = {name: value.replace("3000", str(port)) for name, value in variables_of(command("make run")).items()}
    with serving("dev", environ=environ, folder=dev) as proxy, chromium.new_context() as context:
        wait_until(lambda: "Ctrl-C" in proxy.stdout, "dev says nothing")
        (key,) = re.findall(r"^  tenant key +(\S+)$", proxy.stdout, re.MULTILINE)
        app, page = App(folder, proxy, port), context.new_page()
        with app.running(key):
            ask(page, app.url)
            expect(page.locator("output")).to_contain_text("451 × 300")
            assert describes_the_picture(page.locator("output").inner_text())
        usage = shlex.split(command("fal-proxy usage"))[1:]
        report = subprocess.run(
            [*PROXY, *usage], cwd=dev, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
        )
        assert report.returncode == 0 and "alice" in report.stdout, report.stderr
        with app.running("fpk_wrong"):
            ask(page, app.url)
            expect(page.locator("output")).to_have_text("/session answered 500 (Error)")


def test_a_page_whose_address_is_not_allowed_shows_what_the_tutorial_says(chromium: Browser, tmp_path: Path) -> None:
    dev, folder = tmp_path / "dev", tmp_path / "my-app"
    dev.mkdir()
    folder.mkdir()
    with serving("dev", environ={}, folder=dev) as proxy, chromium.new_context() as context:
        wait_until(lambda: "Ctrl-C" in proxy.stdout, "dev says nothing")
        (key,) = re.findall(r"^  tenant key +(\S+)$", proxy.stdout, re.MULTILINE)
        app, page = App(folder, proxy, free_port()), context.new_page()
        with app.running(key):
            ask(page, app.url)
            expect(page.locator("output")).to_have_text("Failed to fetch (TypeError)")
            wait_until(lambda: app.url in proxy.stdout + proxy.stderr, "the proxy does not say which page it refused")
