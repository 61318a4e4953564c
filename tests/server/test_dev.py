"""`dev` and the commands beside it: a tenant key at once, and its database without a setting."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from proxy.playground.registry import RunningDev, find_running, register
from tests.server.commands import PLAINLY, Commands, Done, Server, serving
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("dev")
    with serving("dev", environ={}, folder=folder) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        yield server, folder


def beside(commands: Commands, folder: Path, *arguments: str, **environ: str) -> Done:
    return commands(*arguments, environ={"PATH": os.environ["PATH"], **environ}, cwd=folder)


def value_of(server: Server, name: str) -> str:
    (value,) = re.findall(rf"^  {name} +(\S+)$", server.stdout, re.MULTILINE)
    return str(value)


def mint(server: Server, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/sessions", json={"subject": "alice"}, headers=headers, **PLAINLY)


def test_dev_prints_a_tenant_key_and_a_minting_line_that_works_when_pasted(dev: tuple[Server, Path]) -> None:
    server, _ = dev
    assert value_of(server, "tenant key").startswith("fpk_")
    (line,) = re.findall(r"^    curl .*?'$", server.stdout, re.MULTILINE | re.DOTALL)
    pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
    session = httpx.Response(200, text=pasted.stdout).json()
    assert session["subject"] == "alice"
    headers = {"authorization": f"Bearer {session['token']}"}
    assert httpx.get(f"{server.url}/v1/session", headers=headers, **PLAINLY).json()["tenant"] == "demo"


def test_the_printed_console_opens_with_the_printed_token_and_the_reference_is_there(dev: tuple[Server, Path]) -> None:
    server, _ = dev
    headers = {"authorization": f"Bearer {value_of(server, 'admin token')}"}
    assert httpx.get(f"{server.url}/v1/admin/tenants", headers=headers, **PLAINLY).status_code == 200
    assert httpx.get(f"{server.url}/v1/admin/tenants", **PLAINLY).status_code == 401
    with httpx.Client(follow_redirects=True, **PLAINLY) as browser:
        assert "Admin token" in browser.get(value_of(server, "console")).text
    assert "fal-proxy API" in httpx.get(value_of(server, "reference"), **PLAINLY).text


def test_the_printed_command_works_in_any_folder(dev: tuple[Server, Path], tmp_path: Path) -> None:
    server, _ = dev
    (line,) = re.findall(r"from any terminal while this runs: (.+)$", server.stdout, re.MULTILINE)
    environ = {"PATH": os.environ["PATH"]}
    pasted = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environ
    )
    assert pasted.returncode == 0 and pasted.stdout.startswith("fpk_"), pasted.stderr


def test_dev_takes_secrets_from_files_and_does_not_print_the_developers_admin_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("an-admin-token-of-the-developers-own")
    (tmp_path / "secret").write_text("a session secret that is longer than 32 bytes")
    environ = {
        "PROXY_ADMIN_TOKEN_FILE": str(tmp_path / "token"),
        "PROXY_SESSION_SECRETS_FILE": str(tmp_path / "secret"),
        "PROXY_CONFIG": "",
    }
    with serving("dev", environ=environ, folder=tmp_path) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        headers = {"authorization": "Bearer an-admin-token-of-the-developers-own"}
        assert httpx.get(f"{server.url}/v1/admin/tenants", headers=headers, **PLAINLY).status_code == 200
        assert "  admin token  yours (PROXY_ADMIN_TOKEN)\n" in server.stdout
        assert "developers-own" not in server.stdout + server.stderr


def test_a_key_is_made_beside_a_running_dev(dev: tuple[Server, Path], commands: Commands) -> None:
    server, folder = dev
    before = set(folder.iterdir())
    done = beside(commands, folder, "keys", "create", "demo")
    assert done.code == 0, done.stderr
    assert f"using the database of the running 'dev' at {server.url}" in done.stderr
    wait_until(lambda: mint(server, done.stdout.strip()).status_code == 201, "the key does not work")
    assert set(folder.iterdir()) == before, "a stray database"
    assert "demo" in beside(commands, folder, "tenants", "list").stdout


def test_a_command_names_the_database_that_it_found_once(dev: tuple[Server, Path], commands: Commands) -> None:
    server, folder = dev
    exported = beside(commands, folder, "tenants", "export")
    (folder / "plans.yaml").write_text(exported.stdout)
    done = beside(commands, folder, "tenants", "apply", "plans.yaml")
    assert done.code == 0 and done.stdout == "unchanged\n"
    assert done.stderr == f"using the database of the running 'dev' at {server.url}\n"
    (folder / "plans.yaml").unlink()


def test_a_session_that_dev_would_not_know_is_not_minted(dev: tuple[Server, Path], commands: Commands) -> None:
    server, folder = dev
    arguments = ("sessions", "mint", "--tenant", "demo", "--subject", "alice")
    done = beside(commands, folder, *arguments)
    assert done.code == 1 and done.stdout == ""
    assert done.stderr.startswith("PROXY_SESSION_SECRETS: is not set, and the running 'dev'")
    assert f"POST {server.url}/v1/sessions" in done.stderr
    assert beside(commands, folder, *arguments, PROXY_SESSION_SECRETS="s" * 32).code == 0


def test_a_setting_or_a_file_of_the_default_name_comes_first(
    dev: tuple[Server, Path], commands: Commands, tmp_path: Path
) -> None:
    _, folder = dev
    url = f"sqlite:///{tmp_path / 'own.db'}"
    done = beside(commands, folder, "keys", "create", "default", PROXY_DATABASE_URL=url)
    assert done.code == 0 and "running 'dev'" not in done.stderr
    (tmp_path / "url").write_text(url)
    done = beside(commands, folder, "tenants", "list", PROXY_DATABASE_URL_FILE=str(tmp_path / "url"))
    assert done.stdout.startswith("default") and "running 'dev'" not in done.stderr
    sqlite3.connect(tmp_path / "fal-proxy.db").close()
    done = beside(commands, tmp_path, "tenants", "list")
    assert done.stdout.startswith("default") and "running 'dev'" not in done.stderr


def test_commands_refuse_to_choose_between_two_devs(
    dev: tuple[Server, Path], commands: Commands, tmp_path: Path
) -> None:
    server, folder = dev
    environ = {"PROXY_PUBLIC_URL": "http://127.0.0.1:1"}
    with serving("dev", environ=environ, folder=folder) as other:
        wait_until(lambda: len(find_running(str(folder))) == 2, "the other one is not found")
        done = beside(commands, folder, "keys", "create", "demo")
        assert done.code == 1 and done.stderr.startswith("PROXY_DATABASE_URL: several 'dev' are running")
        assert server.url in done.stderr and "http://127.0.0.1:1" in done.stderr
        assert not (folder / "fal-proxy.db").exists()
        # Even after a SIGKILL it is no longer found.
        other.stop(signal.SIGKILL)
    assert [one.url for one in find_running(str(folder))] == [server.url]
    assert beside(commands, folder, "keys", "create", "demo").code == 0


def test_a_dev_that_ended_is_no_longer_found(tmp_path: Path) -> None:
    one = RunningDev("http://127.0.0.1:1", "sqlite:///x.db", str(tmp_path))
    with register(one):
        assert find_running(str(tmp_path)) == [one]
        # A command in any other folder finds it too.
        assert one in find_running("/elsewhere")
    assert one not in find_running(str(tmp_path))


def test_a_key_of_a_database_that_stays_ends_with_dev(tmp_path: Path, commands: Commands) -> None:
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    with serving("dev", environ={"PROXY_DATABASE_URL": url}, folder=tmp_path) as server:
        wait_until(lambda: "Ctrl-C" in server.stdout, "dev says nothing")
        assert mint(server, value_of(server, "tenant key")).status_code == 201
        assert beside(commands, tmp_path, "keys", "list", "demo", PROXY_DATABASE_URL=url).stdout
        server.stop(signal.SIGTERM)
    assert beside(commands, tmp_path, "keys", "list", "demo", PROXY_DATABASE_URL=url).stdout == ""


def test_dev_says_which_database_it_cannot_use(tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "folder.db").mkdir()
    url = f"sqlite:///{tmp_path / 'folder.db'}"
    done = beside(commands, tmp_path, "dev", PROXY_DATABASE_URL=url, PROXY_PORT="1")
    assert done.code == 1 and "PROXY_DATABASE_URL: " in done.stderr and "Traceback" not in done.stderr
