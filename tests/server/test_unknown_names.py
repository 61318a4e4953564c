"""A name that nothing has is an error of every command that takes it; a new one shows all of itself."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer

from proxy.cli import main
from tests.server.conftest import Cli

#: What commands need beside the name of a tenant.
MORE = {
    "subject": ["--subject", "alice"],
    "unit": ["--unit", "usd"],
    "amount": ["--amount", "1"],
    "reason": ["--reason", "r"],
    "until": ["--until", "2999-01-01"],
    "month": ["2026-01"],
}
TURNED = "al\u202eice"
PLAN = {"overrides set": ["--plan", "full"]}


def commands_of(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name), command
        yield from commands_of(command, (*path, name))


def arguments_of(path: tuple[str, ...], command: click.Command, tenant: str) -> list[str]:
    arguments = [*path]
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        if parameter.name == "tenant":
            arguments += ["--tenant", tenant] if is_option else [tenant]
        elif parameter.required or (path == ("sessions", "revoke") and parameter.name == "subject"):
            given = MORE[parameter.name or ""]
            arguments += given if is_option else given[-1:]
    return [*arguments, *PLAN.get(" ".join(path), [])]


COMMANDS = {
    " ".join(path): arguments_of(path, command, "nobodys")
    for path, command in commands_of(typer.main.get_command(main))
    if any(parameter.name == "tenant" for parameter in command.params)
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tenant_that_there_is_not(cli: Cli, command: str) -> None:
    done = cli.run(*COMMANDS[command])
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "there is no tenant nobodys; there are: acme, small"


def test_every_command_with_a_tenant_is_tried() -> None:
    assert {"alerts list", "audit list", "jobs list", "grants add", "usage", "statement"} <= COMMANDS.keys()


def test_a_deleted_tenant_still_has_entries(cli: Cli) -> None:
    cli.data("tenants", "list")
    cli.data("tenants", "delete", "small")
    assert "tenant.delete" in cli.data("audit", "list", "--tenant", "small")
    assert cli.data("alerts", "list", "--tenant", "small") == ""


def test_a_user_that_there_cannot_be(cli: Cli) -> None:
    for command in (["jobs", "list", "--tenant", "acme"], ["grants", "list", "acme"]):
        done = cli.run(*command, "--subject", "a\x01")
        assert (done.code, done.stdout) == (1, "") and done.stderr.startswith("--subject: must be 1 to 200 printable")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "sessions mint --tenant acme --subject a --quota usd=1 --quota usd=2",
            "--quota: give one quota for each unit",
        ),
        (
            "sessions mint --tenant acme --subject a --max-tokens 0",
            "--max-tokens: Input should be greater than or equal to 1",
        ),
        (
            'overrides set acme a --until 2999-01-01 --limits {"max_tokens":0}',
            "--limits.max_tokens: Input should be greater than or equal to 1",
        ),
        ("overrides set acme a --until 2999-01-01 --limits []", "--limits: Input should be a JSON object"),
        (
            "grants add acme --unit usd --amount 0 --reason r",
            "--amount: Input should be greater than or equal to 0.000001",
        ),
    ],
)
def test_what_is_wrong_with_an_option_is_said_in_the_words_of_the_api(cli: Cli, arguments: str, said: str) -> None:
    done = cli.run(*arguments.split())
    assert (done.code, done.stdout, done.stderr) == (1, "", f"{said}\n")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["sessions", "mint", "--tenant", "acme", "--subject", TURNED], "subject"),
        (["keys", "create", "acme", "--name", TURNED], "--name"),
        (["grants", "add", "acme", "--unit", "usd", "--amount", "1", "--reason", TURNED], "--reason"),
        (
            ["grants", "add", "acme", "--unit", "usd", "--amount", "1", "--reason", "r", "--subject", TURNED],
            "subject",
        ),
        (["overrides", "set", "acme", TURNED, "--plan", "full", "--until", "2999-01-01"], "subject"),
    ],
)
def test_a_new_name_with_a_character_that_is_not_seen_is_refused(cli: Cli, arguments: list[str], where: str) -> None:
    done = cli.run(*arguments)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.rstrip(".\n") == f"{where}: has the character U+202E, which is not seen; leave it out"
