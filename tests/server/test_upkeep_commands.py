"""The commands that keep a deployment: backup, export, completion, and what lists look like on a terminal."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from proxy.cli import main
from tests.server.commands import PROXY
from tests.server.conftest import PLANS, Cli
from tests.support.issuer import private_key, public_jwk


def on_terminal(cli: Cli, *arguments: str) -> str:
    """What a command writes to a terminal, with one line end each."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROXY, *arguments], env=cli.environ, cwd=cli.folder, stdout=theirs, stderr=theirs, stdin=theirs
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            written += piece
    os.close(ours)
    assert process.returncode == 0, written
    return written.decode().replace("\r\n", "\n")


# --- backup


def test_a_backup_is_a_database_to_go_on_with(cli: Cli) -> None:
    key = cli.data("keys", "create", "acme")
    done = cli.run("backup", "copy.db")
    assert (done.code, done.stdout) == (0, "copy.db\n")
    assert done.stderr == f"backed up {(cli.folder / 'copy.db').stat().st_size} bytes\n"
    restored = {"PROXY_DATABASE_URL": f"sqlite:///{cli.folder / 'copy.db'}"}
    assert cli.run("keys", "list", "acme", **restored).stdout.startswith(key.split("_")[1])


def test_a_backup_that_cannot_be_made_says_why(cli: Cli) -> None:
    assert cli.run("backup", "copy.db").stderr == "there is no database yet\n"
    cli.data("tenants", "list")
    cli.data("backup", "copy.db")
    done = cli.run("backup", "copy.db")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "copy.db is there already; give each backup a name of its own\n"
    done = cli.run("backup", "a" * 5000)
    assert (done.code, done.stdout) == (1, "") and "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    done = cli.run("backup", "other.db", PROXY_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert done.code == 1 and "pg_dump" in done.stderr and not (cli.folder / "other.db").exists()


def test_a_backup_does_not_upgrade_the_database(cli: Cli) -> None:
    """It may be there because an upgrade is about to come."""
    cli.data("tenants", "list")
    with closing(sqlite3.connect(cli.folder / "proxy.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
        database.commit()
    cli.data("backup", "copy.db")
    for name in ("proxy.db", "copy.db"):
        with closing(sqlite3.connect(cli.folder / name)) as database:
            assert database.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)


def test_a_terminal_shows_how_far_a_backup_is(cli: Cli) -> None:
    cli.data("tenants", "list")
    written = on_terminal(cli, "backup", "copy.db")
    assert "backup  [" in written and "100%" in written


# --- export


RICH = {
    **PLANS,
    "plans": {
        **PLANS["plans"],  # type: ignore[dict-item]
        "visitors": {
            "endpoints": ["fal-ai/llava-next"],
            "rate_limits": {"ip": None, "subject": "5/minute"},
            "quotas": [
                {"per": "address", "unit": "requests", "limit": 0.5, "window": "day"},
                {"per": "tenant", "unit": "usd", "limit": 3, "window": "month", "mode": "warn"},
            ],
            "uploads": {"expire_seconds": None},
        },
    },
    "endpoints": [{"id": "fal-ai/llava-next", "price_per_compute_second": 0.0006}],
}


def rich_file(cli: Cli) -> Path:
    (cli.folder / "keys.json").write_text(json.dumps({"keys": [public_jwk(private_key("upkeep"))]}))
    (cli.folder / "schema.json").write_text(json.dumps({"type": "object"}))
    identity = {
        "issuer": "https://acme.example/",
        "audience": "app",
        "jwks_file": "keys.json",
        "plans": {"claim": ["realm", "tier"], "map": {"pro": "full", "basic": "narrow"}},
    }
    guests = {"enabled": True, "tiers": [{"proof": "pow", "plan": "visitors", "difficulty": 1000}]}
    tenants = [
        {
            "id": "acme",
            "plan": "own",
            "identity": [identity],
            "guests": guests,
            "allowed_origins": ["https://b.example", "https://a.example"],
        },
        {"id": "small", "plan": "narrow"},
    ]
    file = {**RICH, "tenants": tenants}
    file["plans"] = {**RICH["plans"], "own": {"endpoints": ["acme/own-model"]}}  # type: ignore[dict-item]
    file["endpoints"] = [*RICH["endpoints"], {"id": "acme/own-model", "schema": "schema.json"}]  # type: ignore[misc]
    path = cli.folder / "rich.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


def test_an_export_changes_nothing_when_it_is_applied(cli: Cli) -> None:
    path = rich_file(cli)
    cli.environ["PROXY_CONFIG"] = str(path)
    cli.data("tenants", "list")
    exported = cli.data("tenants", "export")
    elsewhere = cli.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "exported.yaml").write_text(exported)
    assert cli.data("tenants", "apply", str(elsewhere / "exported.yaml")) == "unchanged"
    assert cli.data("tenants", "export") == exported
    fresh = {
        "PROXY_DATABASE_URL": f"sqlite:///{elsewhere / 'fresh.db'}",
        "PROXY_CONFIG": str(elsewhere / "exported.yaml"),
    }
    assert cli.run("tenants", "export", **fresh).stdout.removesuffix("\n") == exported


def test_an_export_has_what_was_applied_last_and_leaves_out_defaults(cli: Cli) -> None:
    cli.data("tenants", "list")
    (cli.folder / "more.yaml").write_text(yaml.safe_dump({**PLANS, "tenants": [{"id": "globex", "plan": "narrow"}]}))
    cli.data("tenants", "apply", "more.yaml")
    assert yaml.safe_load(cli.data("tenants", "export")) == {
        "plans": {
            "full": {"endpoints": ["fal-ai/llava-next", "fal-ai/llavav15-13b"], "session_ttl_seconds": 3600},
            "narrow": {"endpoints": ["fal-ai/llava-next"], "max_tokens": 64},
        },
        "tenants": [
            {"id": "acme", "plan": "full"},
            {"id": "globex", "plan": "narrow"},
            {"id": "small", "plan": "narrow"},
        ],
    }


def test_an_export_that_could_not_be_applied_is_refused(cli: Cli) -> None:
    path = rich_file(cli)
    cli.run("tenants", "list", PROXY_CONFIG=str(path))
    done = cli.run("tenants", "export")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "PROXY_CONFIG: name the proxy's plan file, which has the schema of acme/own-model\n"


# --- terminals and shells


def test_a_list_has_headers_on_a_terminal_and_tabs_elsewhere(cli: Cli) -> None:
    assert cli.data("tenants", "list") == "acme\tfull\nsmall\tnarrow"
    assert on_terminal(cli, "tenants", "list") == "id     plan    state\nacme   full\nsmall  narrow\n"
    cli.data("tenants", "suspend", "acme")
    assert on_terminal(cli, "tenants", "list") == "id     plan    state\nacme   full    suspended\nsmall  narrow\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(cli: Cli, shell: str) -> None:
    words = {"COMP_WORDS": "fal-proxy tenants ex", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "fal-proxy tenants ex"}
    environ = {**words, "_FAL_PROXY_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "export" in cli.run(**environ).stdout  # type: ignore[arg-type]


def test_a_terminal_shows_how_far_a_verification_is(cli: Cli) -> None:
    cli.data("keys", "create", "acme")
    written = on_terminal(cli, "audit", "verify")
    assert "verify  [" in written and "100%" in written
    assert "[" not in cli.run("audit", "verify").stderr


# --- JSON

#: Commands that run until they are stopped, and those that print nothing but JSON.
WITHOUT_JSON = {"serve", "dev", "sandbox", "audit export", "tenants schema"}


def test_all_other_commands_print_json() -> None:
    def list_lacking(group: Any, prefix: str = "") -> Iterator[str]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from list_lacking(command, f"{prefix}{name} ")
            elif not any("--json" in option.opts for option in command.params):
                yield f"{prefix}{name}"

    assert set(list_lacking(typer.main.get_command(main))) == WITHOUT_JSON


def read_json(cli: Cli, *arguments: str, code: int = 0) -> Any:
    done = cli.run(*arguments, "--json")
    assert done.code == code, done.stderr
    return json.loads(done.stdout)


def test_changes_say_as_json_what_they_changed(cli: Cli) -> None:
    key = read_json(cli, "keys", "create", "acme")
    assert read_json(cli, "keys", "revoke", key["id"]) == {"id": key["id"], "status": "revoked"}
    assert read_json(cli, "tenants", "suspend", "acme") == {"id": "acme", "status": "suspended"}
    assert read_json(cli, "tenants", "resume", "acme") == {"id": "acme", "status": "resumed"}
    cli.data("admin-tokens", "create", "ops", "--role", "viewer")
    assert read_json(cli, "admin-tokens", "revoke", "ops") == {"name": "ops", "status": "revoked"}
    cli.data("overrides", "set", "acme", "alice", "--until", "2099-01-31", "--plan", "narrow")
    cleared = {"tenant": "acme", "subject": "alice", "status": "cleared"}
    assert read_json(cli, "overrides", "clear", "acme", "alice") == cleared
    session = read_json(cli, "sessions", "mint", "--tenant", "acme", "--subject", "alice")["id"]
    assert read_json(cli, "sessions", "revoke", session) == {"session_id": session, "status": "revoked"}
    of_alice = ("sessions", "revoke", "--tenant", "acme", "--subject", "alice")
    assert read_json(cli, *of_alice) == {"tenant": "acme", "subject": "alice", "status": "revoked"}


def test_the_upkeep_commands_print_json(cli: Cli) -> None:
    revision = read_json(cli, "migrate")["revision"]
    assert revision == cli.data("migrate")
    copied = read_json(cli, "backup", "copy.db")
    assert copied == {"file": "copy.db", "bytes": (cli.folder / "copy.db").stat().st_size}
    cli.data("tenants", "list")
    assert read_json(cli, "tenants", "export") == yaml.safe_load(cli.data("tenants", "export"))


def test_checks_print_their_problems_as_json(cli: Cli) -> None:
    cli.environ |= {"FAL_KEY": "id:secret", "PROXY_PUBLIC_URL": "https://ai.example.com"}
    assert read_json(cli, "check-config") == {"status": "ok", "problems": []}
    cli.environ["PROXY_PORT"] = "many"
    found = read_json(cli, "check-config", code=1)
    assert found["status"] == "wrong" and found["problems"] == ["PROXY_PORT: must be a whole number from 1 to 65535"]
