"""The package: an incomplete one is not built, and the installed program runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import httpx
import pytest

from proxy import __version__
from tests.deploy.containers import ROOT
from tests.deploy.test_project import tracked_files
from tests.server.commands import PLAINLY, serving

PAGE = "proxy/playground/web/static/bundle/main.js"
VIEWER = "proxy/routes/openapi/viewer/bundle/swagger-ui-bundle.js"
CONSOLE = "proxy/console/static/bundle/htmx.min.js"
UV, PIPX = (Path(sys.executable).with_name(name) for name in ("uv", "pipx"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean clone has: the tracked files alone."""
    folder = tmp_path_factory.mktemp("clone")
    for path in tracked_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return folder


def build(source: Path, folder: Path, *options: str, project_url: str = "") -> subprocess.CompletedProcess[str]:
    command = [UV, "build", "--no-build-isolation", "--python", sys.executable, "--offline", "--out-dir", folder]
    environ = {**os.environ, "PROJECT_URL": project_url}
    return subprocess.run([*command, *options, source], env=environ, capture_output=True, text=True, timeout=110)


def add(clone: Path, *names: str) -> None:
    for name in names:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)


@pytest.mark.parametrize("kind", ["--wheel", "--sdist"])
def test_a_clean_clone_is_refused_with_what_to_do(kind: str, clone: Path, tmp_path: Path) -> None:
    done = build(clone, tmp_path, kind)
    assert done.returncode != 0 and not list(tmp_path.glob("fal*"))
    assert f"{PAGE} and {VIEWER} and {CONSOLE} is not built" in done.stderr and "Run `make bundle` first" in done.stderr


@pytest.mark.parametrize(
    "url", ["http://git.example.com/a", "git@example.com:a/b", "https://", "https://a/b?c=1", "https://a/(b)"]
)
def test_a_wrong_address_of_the_repository_is_refused(url: str, clone: Path, tmp_path: Path) -> None:
    done = build(clone, tmp_path, "--wheel", project_url=url)
    assert done.returncode != 0 and not list(tmp_path.glob("fal*"))
    assert f"PROJECT_URL is {url.rstrip('/')!r}. Write the address of the repository" in done.stderr


@pytest.fixture(scope="module")
def whole(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("whole") / "clone"
    shutil.copytree(clone, source)
    add(source, PAGE, VIEWER, VIEWER.replace("-bundle.js", ".css"), CONSOLE)
    return source


@pytest.fixture(scope="module")
def wheel(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = build(whole, folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def metadata(wheel: Path) -> Message:
    """What an index knows of a package."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        return BytesParser().parsebytes(packed.read(name))


def links_of(markdown: str) -> list[str]:
    return re.findall(r"\]\(([^)]*)\)", markdown)


@pytest.mark.tools
@pytest.mark.slow
class TestWhole:
    """With the bundles, which `make bundle` makes."""

    def test_the_wheel_has_the_bundles_and_is_the_same_built_from_the_sdist(self, wheel: Path) -> None:
        # Without `--wheel`, uv builds it of the sdist.
        names = zipfile.ZipFile(wheel).namelist()
        files = {"proxy/playground/web/static/index.html", "proxy/console/templates/page.html", "proxy/py.typed"}
        assert {PAGE, VIEWER, CONSOLE, *files} <= set(names)
        assert not [name for name in names if name.endswith((".ts", ".db")) or name.startswith("tests/")]

    def test_the_description_for_an_index_has_no_dead_link(self, wheel: Path) -> None:
        known = metadata(wheel)
        text = str(known.get_payload())
        assert text.startswith("# fal-proxy\n") and known["Description-Content-Type"] == "text/markdown"
        assert links_of(text) == ["https://fal.ai"] and "The tutorial takes you" in text
        assert known.get_all("License-File") == ["LICENSE"] and known.get_all("Project-URL") is None

    def test_an_index_gets_links_into_the_repository_if_it_is_named(self, whole: Path, tmp_path: Path) -> None:
        repository = "https://git.example.com/acme/fal-proxy"
        done = build(whole, tmp_path, "--wheel", project_url=f"{repository}/")
        assert done.returncode == 0, done.stderr
        (wheel,) = tmp_path.glob("*.whl")
        known = metadata(wheel)
        links = links_of(str(known.get_payload()))
        assert links.count(f"{repository}/raw/v{__version__}/docs/images/playground.png") == 1
        written = links_of((ROOT / "README.md").read_text())
        for link, path in zip(links, written, strict=True):
            assert link == path or link in (f"{repository}/{kind}/v{__version__}/{path}" for kind in ("blob", "raw"))
        assert all(link.startswith("https://") for link in links)
        urls = dict(url.split(", ") for url in known.get_all("Project-URL", []))
        assert urls.keys() == {"Homepage", "Documentation", "Changelog", "Issues", "Security"}
        assert urls["Homepage"] == repository and all(url.startswith(repository) for url in urls.values())

    def test_the_sdist_has_what_the_readme_links_to(self, wheel: Path) -> None:
        (sdist,) = wheel.parent.glob("*.tar.gz")
        with tarfile.open(sdist) as packed:
            names = {name.partition("/")[2] for name in packed.getnames()}
        paths = [link for link in links_of((ROOT / "README.md").read_text()) if not link.startswith("https:")]
        missing = [path for path in paths if not any(name == path or name.startswith(path) for name in names)]
        assert len(paths) > 20 and missing == []
        assert {"Dockerfile", ".dockerignore", "compose.yaml", "requirements/runtime.txt", "Makefile"} <= names

    @pytest.mark.parametrize("way", ["pip install .", "pipx run", "uvx"])
    @pytest.mark.timeout(600)
    def test_the_installed_program_serves_the_page(self, way: str, whole: Path, wheel: Path, tmp_path: Path) -> None:
        program = program_of(way, whole, wheel, tmp_path / "installed")
        # With what a runner has to know of the package index, and without settings of ours.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("FAL_", "PROXY_"))}
        # The first time, a runner installs.
        done = subprocess.run([*program, "--version"], env=environ, capture_output=True, text=True, timeout=550)
        assert (done.returncode, done.stdout) == (0, f"fal-proxy {__version__}\n"), done.stderr
        with serving("dev", environ=environ, folder=tmp_path, program=program, live_at="/") as server:
            page = httpx.get(f"{server.url}/", **PLAINLY)
            (script,) = re.findall(r'src="([^"]*main\.js)"', page.text)
            assert httpx.get(httpx.URL(server.url).join(script), **PLAINLY).status_code == 200
            # A runner passes this on; it would leave the program behind if it were killed.
            server.stop(signal.SIGTERM)


def program_of(way: str, source: Path, wheel: Path, folder: Path) -> Sequence[str]:
    """How `fal-proxy` is called after it was installed so."""
    if way == "uvx":
        return [str(UV), "tool", "run", "--python", sys.executable, "--from", str(wheel), "fal-proxy"]
    if way == "pipx run":
        return [str(PIPX), "run", "--python", sys.executable, "--spec", str(wheel), "fal-proxy"]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=110)
    # pip finds the dependencies of the tests there; the runners and the image install them from scratch.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    command = [folder / "bin" / "pip", "install", "-q", "--no-index", "--no-build-isolation", source]
    subprocess.run(command, check=True, timeout=500)
    assert (packages / "proxy" / "cli" / "__init__.py").is_file()
    return [str(folder / "bin" / "fal-proxy")]
