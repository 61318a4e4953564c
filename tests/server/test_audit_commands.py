"""Every command that changes something leaves an entry in the audit log."""

from __future__ import annotations

import getpass
import json
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
import typer
import yaml
from typer.core import TyperGroup

from proxy.cli import main
from tests.server.conftest import PLANS, Cli
from tests.support.alerts import raise_alert
from tests.support.audit_log import read_entries

#: Commands that change nothing of the proxy's, or run one: what servers change has entries of its own. The database
#: says itself what `migrate` did.
READING = {
    "serve",
    "dev",
    "sandbox",
    "check-config",
    "migrate",
    "usage",
    "statement",
    "tenants list",
    "tenants show",
    "tenants schema",
    "keys list",
    "upstreams",
    "reconcile",
    "jobs list",
    "jobs show",
    # Through a route, which records it.
    "jobs cancel",
    "tenants export",
    "grants list",
    "overrides list",
    "backup",
    "doctor",
    "admin-tokens list",
    "alerts list",
    "audit list",
    "audit export",
    "audit verify",
}


def apply_another_plan(cli: Cli) -> None:
    narrow = {**PLANS["plans"]["narrow"], "max_tokens": 7}
    (cli.folder / "other.yaml").write_text(yaml.safe_dump({"plans": {"narrow": narrow}}))
    cli.data("tenants", "apply", str(cli.folder / "other.yaml"))


def suspend_and_resume(cli: Cli) -> None:
    cli.data("tenants", "suspend", "acme")
    cli.data("tenants", "resume", "acme")


def override_and_clear(cli: Cli) -> None:
    cli.data("overrides", "set", "acme", "al", "--plan", "narrow", "--until", "2099-01-31")
    cli.data("overrides", "clear", "acme", "al")


def create_key(cli: Cli) -> None:
    cli.data("keys", "create", "acme", "--name", "backend")


def revoke_key(cli: Cli) -> None:
    create_key(cli)
    key_id = cli.data("keys", "list", "acme").partition("\t")[0]
    cli.data("keys", "revoke", key_id)


def resend_alert(cli: Cli) -> None:
    cli.data("tenants", "list")
    raise_alert(cli.environ["PROXY_DATABASE_URL"], "a1", "acme", "", "acme")
    assert cli.data("alerts", "list", "--delivery", "dead") == ""
    assert cli.data("alerts", "list").split("\t")[4] == "operator:waiting,tenant:waiting"
    assert cli.data("alerts", "resend", "a1") == "operator\twaiting\t0\ntenant\twaiting\t0"


def revoke_token(cli: Cli) -> None:
    cli.data("admin-tokens", "create", "ops", "--role", "viewer")
    cli.data("admin-tokens", "revoke", "ops")


#: The command by its name, what runs it, and the actions that it records after those of the plan file.
MUTATING: dict[str, tuple[Callable[[Cli], object], list[str]]] = {
    "tenants apply": (apply_another_plan, ["plan.change"]),
    "tenants suspend": (lambda cli: cli.data("tenants", "suspend", "acme"), ["tenant.suspend"]),
    "tenants resume": (suspend_and_resume, ["tenant.suspend", "tenant.resume"]),
    "tenants delete": (lambda cli: cli.data("tenants", "delete", "small"), ["tenant.delete"]),
    "tenants forget": (lambda cli: cli.data("tenants", "forget", "acme", "al"), ["subject.forget"]),
    "keys create": (create_key, ["key.create"]),
    "keys revoke": (revoke_key, ["key.create", "key.revoke"]),
    "overrides set": (override_and_clear, ["override.set", "override.clear"]),
    "overrides clear": (override_and_clear, ["override.set", "override.clear"]),
    "grants add": (
        lambda cli: cli.data("grants", "add", "acme", "--unit", "usd", "--amount", "5", "--reason", "sorry"),
        ["grant.add"],
    ),
    "alerts resend": (resend_alert, ["alert.resend"]),
    "admin-tokens create": (
        lambda cli: cli.data("admin-tokens", "create", "ops", "--role", "viewer"),
        ["admin_token.create"],
    ),
    "admin-tokens revoke": (revoke_token, ["admin_token.create", "admin_token.revoke"]),
    "sessions mint": (
        lambda cli: cli.data("sessions", "mint", "--tenant", "acme", "--subject", "al"),
        ["session.mint"],
    ),
    "sessions revoke": (
        lambda cli: cli.data("sessions", "revoke", "--tenant", "acme", "--subject", "al"),
        ["session.revoke"],
    ),
}


def names_of(group: TyperGroup, prefix: str = "") -> set[str]:
    """The names of all commands, such as `keys create`."""
    found = set[str]()
    for name, command in group.commands.items():
        found |= names_of(command, f"{prefix}{name} ") if isinstance(command, TyperGroup) else {f"{prefix}{name}"}
    return found


def test_each_command_is_known_to_read_or_to_change() -> None:
    group = typer.main.get_command(main)
    assert isinstance(group, TyperGroup)
    assert names_of(group) == READING | MUTATING.keys()
    assert not READING & MUTATING.keys()


@pytest.mark.parametrize("name", MUTATING)
def test_each_mutating_command_leaves_an_entry(cli: Cli, name: str) -> None:
    run, actions = MUTATING[name]
    run(cli)
    entries = read_entries(cli.environ["PROXY_DATABASE_URL"])
    assert [entry["action"] for entry in entries] == ["plan.create"] * 2 + ["tenant.create"] * 2 + actions
    for entry in entries:
        assert (entry["by"], entry["address"]) == (f"command:{getpass.getuser()}", socket.gethostname())


def test_a_log_is_listed_exported_and_verified(cli: Cli) -> None:
    create_key(cli)
    newest = cli.data("audit", "list", "--tenant", "acme", "--limit", "1").split("\t")
    assert newest[0] == "5" and newest[3:5] == ["key.create", "acme"]
    (row,) = json.loads(cli.data("audit", "list", "--limit", "1", "--json"))
    assert row["number"] == 5 and row["after"] == {"name": "backend"}
    lines = [json.loads(line) for line in cli.data("audit", "export").splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5] and lines[-1] == row
    assert cli.data("audit", "export", "--after", "4") == json.dumps(row, separators=(",", ":"))
    head = cli.data("audit", "verify")
    assert head == f"5:{row['hash']}"
    create_key(cli)
    assert json.loads(cli.data("audit", "verify", "--expect", head, "--json"))["problems"] == []
    with closing(sqlite3.connect(cli.folder / "proxy.db")) as database:
        database.execute("UPDATE audit SET document = replace(document, 'backend', 'another') WHERE number = 5")
        database.commit()
    done = cli.run("audit", "verify", "--expect", head)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "entry 5 does not follow from the one before: one of them was changed\n"
    assert cli.run("audit", "verify", "--json").code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("verify", "--expect", "5"), 1, "--expect: must be a head as 'audit verify' prints it"),
        (("list", "--tenant", "a\nb"), 1, "there is no tenant a"),
        (("list", "--limit", "1001"), 2, "Input should be less than or equal to 1000"),
        (("export", "--after", "-1"), 2, "Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_refused(cli: Cli, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = cli.run("audit", *arguments)
    assert (done.code, done.stdout) == (code, "") and words in done.stderr
