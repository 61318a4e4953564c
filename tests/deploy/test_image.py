"""The production image, built from the Dockerfile as it is and run as its user."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from proxy.sandbox.app import SANDBOX_KEY
from tests.deploy.containers import (
    LIST_PACKAGES,
    ROOT,
    STORAGE,
    Container,
    build,
    buildah,
    configuration,
    ensure_base_image,
    layer_sizes,
    send_stop_signal,
    tidy,
)
from tests.server.commands import PLAINLY
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.tools, pytest.mark.timeout(600)]

TAG = "localhost/fal-proxy:test"
CANARY = "canary-key-id:canary-key-secret"

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "https://git.example.com/acme/fal-proxy"
MEGABYTE = 1_000_000
#: Files that other processes write while tests run, or that are large; the image contains none of them.
CHANGING = (".git", ".venv", ".tools", "node_modules", ".*_cache", "__pycache__", "test-results", "build", "dist")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in a folder that also holds what must not get into an image."""
    context = tmp_path_factory.mktemp("context") / "project"
    shutil.copytree(ROOT, context, ignore=shutil.ignore_patterns(*CHANGING))
    (context / ".env").write_text(f"FAL_KEY={CANARY}\n")
    (context / "proxy" / "web" / "node_modules" / "left-behind").mkdir(parents=True)
    return context


@pytest.fixture(scope="module")
def _storage() -> None:
    """The storage of images, with the base image and nothing of earlier runs."""
    STORAGE.mkdir(parents=True, exist_ok=True)
    tidy()
    ensure_base_image()


@pytest.fixture(scope="module")
def image(context: Path, _storage: None) -> str:
    build(
        context,
        TAG,
        environ={"FAL_KEY": CANARY},
        arguments={"VERSION": "1.2.3", "COMMIT": COMMIT, "PROJECT_URL": REPOSITORY},
    )
    return TAG


@pytest.fixture(scope="module")
def with_all_options(context: Path, _storage: None) -> Iterator[Container]:
    """A container of an image that was built with what is optional."""
    build(context, f"{TAG}-options", environ={}, arguments={"OTEL": "on", "PICTURES": "on"})
    with Container(f"{TAG}-options") as container:
        yield container


@pytest.fixture(scope="module")
def idle(image: str) -> Iterator[Container]:
    """A container with no settings at all, to look around in."""
    with Container(image) as container:
        yield container


def paths(container: Container, *criteria: str) -> list[str]:
    """What `find` finds in the container, as its user, outside the kernel's file systems."""
    skip = ("(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", ")", "-prune", "-o")
    run = container.run("sh", "-c", 'find "$@"; echo end', "find", "/", *skip, *criteria, "-print")
    # Without the end mark the search did not run to its end.
    *found, end = run.stdout.splitlines() or [""]
    assert end == "end", run.stderr
    return found


def test_the_image_states_its_user_ports_and_command(image: str) -> None:
    config = configuration(image)["config"]
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["python", "-m", "proxy"], ["serve"])
    assert list(config["ExposedPorts"]) == ["8787/tcp"]
    assert list(config["Volumes"]) == ["/data"] and config["WorkingDir"] == "/data"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in config["Labels"].items() if name.startswith(prefix)}
    assert (labels["title"], labels["version"], labels["revision"]) == ("fal-proxy", "1.2.3", COMMIT)
    assert labels["source"] == REPOSITORY
    assert labels["licenses"] == "MIT" and labels["description"] and labels["vendor"]
    assert f"PROXY_COMMIT={COMMIT}" in config["Env"]
    assert "StopSignal" not in config
    # What the allocator keeps for the next piece of a file: less than half of the page faults of an upload.
    allocator = {"MALLOC_TRIM_THRESHOLD_=8388608", "MALLOC_TOP_PAD_=1048576", "MALLOC_MMAP_THRESHOLD_=4194304"}
    assert allocator <= set(config["Env"])


def test_runs_as_the_numbered_user(idle: Container) -> None:
    assert idle.run("sh", "-c", "id -u; id -g").stdout.split() == ["10001", "10001"]


def test_the_container_can_write_to_its_data_and_nowhere_else(idle: Container) -> None:
    writable = paths(idle, "-writable", "-not", "-type", "l")
    # Debian's own scratch directories; a read-only root closes them too.
    assert set(writable) - {"/tmp", "/var/tmp", "/run/lock"} == {"/data"}


def test_another_user_of_the_group_0_can_write_to_its_data(idle: Container) -> None:
    """OpenShift runs the image as such a user."""
    assert idle.run("stat", "-c", "%u %g %a", "/data").stdout.split() == ["10001", "0", "770"]


def test_has_neither_build_tools_nor_caches(idle: Container) -> None:
    tools = ("cc", "gcc", "make", "git", "node", "npm", "uv", "hatchling")
    found = idle.run("sh", "-c", f"command -v {' '.join(tools)}; true").stdout
    assert found == ""
    assert not paths(idle, "-path", "*/.cache/*")
    assert not paths(idle, "-path", "/opt/fal-proxy/*", "(", "-name", "pip", "-o", "-name", "pip-*", ")")
    assert not paths(idle, "-maxdepth", "1", "(", "-name", "src", "-o", "-name", "wheel", ")")


def test_has_the_program_and_no_more_of_the_project(idle: Container) -> None:
    (package,) = paths(idle, "-path", "/opt/*", "-type", "d", "-name", "proxy", "-path", "*/site-packages/proxy")
    files = set(idle.run("sh", "-c", f"cd {package} && find . -type f -not -name '*.pyc'").stdout.split())
    assert {"./app.py", "./cli/__init__.py", "./py.typed", "./catalog/endpoints/fal-ai--llava-next.json"} <= files
    assert not [name for name in files if "node_modules" in name or name.endswith((".ts", ".env", "package.json"))]
    assert not paths(idle, "-path", "/opt/*", "-name", "Dockerfile")
    assert not paths(idle, "-path", "/opt/fal-proxy/*", "-path", "*/site-packages/tests")


def test_has_the_playground_with_its_script(idle: Container) -> None:
    assert len(paths(idle, "-path", "*/playground/web/static/bundle/main.js")) == 1


def test_its_list_of_packages_names_all_that_are_installed(idle: Container) -> None:
    listed = json.loads(idle.run("cat", "/opt/fal-proxy/sbom.cdx.json").stdout)
    assert listed["bomFormat"] == "CycloneDX"
    itself = listed["metadata"]["component"]
    named = {f"{one['name']}=={one['version']}" for one in [itself, *listed["components"]]}
    assert named == set(idle.run("python", "-c", LIST_PACKAGES).stdout.split())
    assert len(named) > 40 and itself["name"] == "fal-proxy"


def test_the_sandbox_and_its_picture_library_are_left_to_pip(idle: Container) -> None:
    assert not paths(idle, "-path", "/opt/*", "-iname", "pillow*")
    assert not paths(idle, "-path", "/opt/*", "-name", "PIL")
    for command in ("dev", "sandbox"):
        refused = idle.run(*idle.entrypoint, command)
        assert refused.returncode == 1 and "needs Pillow" in refused.stderr and "Traceback" not in refused.stderr


#: For Python: what is optional can be imported.
IMPORT_OPTIONS = "import PIL.Image, opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http"


def test_the_image_can_be_built_with_traces_and_pictures(with_all_options: Container, idle: Container) -> None:
    assert idle.run("python", "-c", IMPORT_OPTIONS).returncode == 1
    assert with_all_options.run("python", "-c", IMPORT_OPTIONS).returncode == 0
    settings = (
        "env",
        "FAL_KEY=id:secret",
        f"PROXY_SESSION_SECRETS={SECRET}",
        "PROXY_PUBLIC_URL=https://ai.example.com",
        "PROXY_OTLP_ENDPOINT=http://127.0.0.1:4318",
    )
    checked = with_all_options.run(*settings, *with_all_options.entrypoint, "check-config")
    assert (checked.returncode, checked.stdout) == (0, "ok\n"), checked.stderr
    refused = idle.run(*settings, *idle.entrypoint, "check-config")
    assert refused.returncode == 1 and "OTEL=on" in refused.stderr and "Traceback" not in refused.stderr


def test_the_image_is_small(image: str) -> None:
    _, own = layer_sizes(image)
    assert own < 180 * MEGABYTE


def test_the_key_of_the_builder_is_not_in_it(image: str, idle: Container) -> None:
    assert "canary" not in json.dumps(configuration(image))
    found = idle.run("grep", "-rl", "canary-key-secret", "/opt", "/data", "/etc")
    assert found.stdout == ""
    assert buildah("inspect", "--type", "image", image).count("canary") == 0


def test_without_settings_it_says_what_is_missing(idle: Container) -> None:
    refused = idle.run(*idle.entrypoint, "check-config")
    assert refused.returncode == 1
    assert [line.partition(":")[0] for line in refused.stderr.splitlines()[:2]] == ["FAL_KEY", "PROXY_SESSION_SECRETS"]


@pytest.fixture
def environ(shared_sandbox: SandboxControl) -> dict[str, str]:
    return {
        **sandbox_environ(shared_sandbox.url),
        "FAL_KEY": SANDBOX_KEY,
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_CONFIG": "/etc/fal-proxy/config.yaml",
        "PROXY_PORT": str(free_port()),
    }


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {"plans": {"free": {"endpoints": ["fal-ai/llava-next"]}}, "tenants": [{"id": "acme", "plan": "free"}]}
        )
    )
    path.chmod(0o644)
    return path


@contextlib.contextmanager
def serving(container: Container, log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The container at its own entrypoint and command; its URL once it is ready."""
    url = f"http://127.0.0.1:{container.environ['PROXY_PORT']}"
    with log.open("w") as stderr:
        process = container.start(*container.entrypoint, *container.default_command, stderr=stderr)
    try:
        _wait_until_ready(url, process)
        yield url, process
    finally:
        if process.poll() is None:
            send_stop_signal(process)
        process.wait(timeout=60)


def _wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, "the container stopped while starting"
        try:
            return httpx.get(f"{url}/readyz", **PLAINLY).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_ready, "the container was not ready within two minutes", 120)


def test_serves_asks_fal_and_stops(
    image: str, environ: dict[str, str], plans: Path, sandbox: SandboxControl, tmp_path: Path
) -> None:
    mount, log = f"{plans}:/etc/fal-proxy/config.yaml:ro", tmp_path / "log"
    with Container(image, environ, [mount]) as container, serving(container, log) as (url, process):
        assert httpx.get(f"{url}/livez", **PLAINLY).json() == {"status": "ok"}
        minted = container.run(*container.entrypoint, "sessions", "mint", "--tenant", "acme", "--subject", "alice")
        answer = httpx.post(
            f"{url}/api/fal/proxy",
            headers={
                "authorization": f"Bearer {minted.stdout.strip()}",
                "x-fal-target-url": "https://queue.fal.run/fal-ai/llava-next",
            },
            json={"prompt": "What is this?", "image_url": "data:image/png;base64,iVBORw0KGgo="},
            **PLAINLY,
        )
        assert answer.status_code == 200 and answer.json()["request_id"]
        assert [call["path"] for call in sandbox.requests()] == ["/fal-ai/llava-next"]

        health_check = configuration(image)["config"]["Healthcheck"]["Test"][1:]
        assert container.run(*health_check).returncode == 0
        send_stop_signal(process)
        process.wait(timeout=60)
        assert "Application shutdown complete" in log.read_text()
