"""The README and docs/ say what is there: every setting, command, route, error and fault, and no other."""

from __future__ import annotations

import asyncio
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from proxy import cli, errors
from proxy.sandbox.control import Control
from proxy.sandbox.fault_kinds import FAULT_KINDS
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import Timing
from proxy.settings import DEFAULTS, SECRETS, VARIABLES
from proxy.telemetry.metrics import Metrics
from proxy.tenants.plan_file import read_file
from tests.support.routes import answered_routes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", CONTRIBUTING, ROOT / "examples" / "README.md", *DOCS]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    _, below = re.split(rf"^#+ {re.escape(title)}$", text, maxsplit=1, flags=re.MULTILINE)
    return re.split(r"^#+ ", below, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without heads and rules."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    ruled = [at for at, line in enumerate(lines) if set(line) <= set("|-: ")]
    heads = {at - 1 for at in ruled} | set(ruled)
    return [[cell.strip() for cell in line.split("|")] for at, line in enumerate(lines) if at not in heads]


def code(cell: str) -> str:
    return cell.strip("`")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# Settings, plans, commands


def test_every_setting_stands_in_the_readme_with_its_default_and_no_other() -> None:
    told = {code(name): (code(default), what) for name, default, what in rows(section(README, "Settings"))}
    assert told == {name: (DEFAULTS.get(name, ""), what) for name, what in VARIABLES.items()}


def test_the_plan_file_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks(section(README, "Plans and tenants"), "yaml")
    path = tmp_path / "plans.yaml"
    path.write_text(text)
    file, _ = read_file(path)
    assert file.tenants[0].guests.plan == "taste" and file.plans["free"].max_tokens == 256
    assert len(file.plans["free"].quotas) == 2
    assert set(yaml.safe_load(text)["plans"]["free"]) | {"image_schemes", "max_data_uri_bytes", "pass_headers"} == set(
        type(file.plans["free"]).model_fields
    )


def commands(group: Any, path: tuple[str, ...] = ()) -> list[str]:
    inner = getattr(group, "commands", None)
    if inner is None:
        return [" ".join(path)]
    return [found for name, command in inner.items() for found in commands(command, (*path, name))]


def test_every_command_stands_in_the_readme_and_no_other() -> None:
    (text,) = blocks(section(README, "The command line"), "")
    told = set()
    for line in re.findall(r"^fal-proxy (.*)$", text, re.MULTILINE):
        group, _, rest = re.split(r"  +", line)[0].partition(" ")
        inside = rest.split(" | ") if group in ("tenants", "keys", "sessions") else []
        told |= {f"{group} {name.split()[0]}" for name in inside} or {group}
    assert told == set(commands(typer.main.get_command(cli.main)))


# Routes and errors


def test_every_route_stands_in_the_api_page_and_no_other() -> None:
    told = {
        (code(cells[0]), method)
        for cells in rows(page("api"))
        if cells[0].startswith("`/")
        for method in cells[1].split(", ")
    }
    assert told == answered_routes()


def kinds(of: type[errors.ProxyError]) -> list[type[errors.ProxyError]]:
    return [of, *(kind for child in of.__subclasses__() for kind in kinds(child))]


def test_every_error_stands_in_the_api_page_with_its_status_and_no_other() -> None:
    told = {(int(cells[0]), code(cells[1])) for cells in rows(section(page("api"), "Errors"))}
    abstract = {errors.Unavailable}
    assert told == {(kind.status, kind.code) for kind in kinds(errors.ProxyError) if kind not in abstract}


def test_the_example_of_an_error_has_the_fields_that_errors_have() -> None:
    (text,) = blocks(section(page("api"), "Errors"), "json")
    body = errors.respond(errors.RateLimited("…", retry_after=3, scope="subject"), "…").body
    assert yaml.safe_load(text) == yaml.safe_load(bytes(body))


# Metrics


def test_every_metric_stands_in_the_operations_page_and_no_other() -> None:
    metrics = Metrics()
    metrics.gauge(*[lambda: 0] * 4)

    async def rendered() -> str:
        return (await metrics.render()).decode()

    kinds = re.findall(r"^# TYPE (\S+) ", asyncio.run(rendered()), re.MULTILINE)
    documented = {code(cells[0]) for cells in rows(section(page("operations"), "Metrics"))}
    assert {name for name in documented if name.startswith("fal_")} == {
        name for name in kinds if not name.endswith("_created")
    }


# The sandbox


def test_every_pace_stands_in_the_sandbox_page_with_its_default() -> None:
    told = {code(cells[0]): cells[1] for cells in rows(page("sandbox")) if len(cells) == 3}
    assert told == {one.name: str(one.default).replace("True", "true") for one in fields(Timing)}


def test_every_fault_stands_in_the_sandbox_page() -> None:
    table = section(page("sandbox"), "In a prompt").partition("| fault |")[2]
    told = re.findall(r"^\| `([a-z_]+)", table, re.MULTILINE)
    assert sorted(told) == sorted(FAULT_KINDS)


def test_every_control_route_stands_in_the_sandbox_page() -> None:
    table = section(page("sandbox"), "By its control routes")
    for route in Control(SandboxState("key", Timing())).routes():
        assert f"/_sandbox{route.path}`" in table


# Links, and what must not stand anywhere


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not link.startswith(("http://", "https://")):
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_that_is_named_is_one(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= targets


def test_every_place_that_contributors_are_sent_to_exists() -> None:
    places = re.findall(r"`((?:proxy|tests|docs)/[a-z_./]*|README.md|CHANGELOG.md)`", CONTRIBUTING.read_text())
    assert len(places) > 10
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_who_acts(page: Path) -> None:
    found = re.findall(r"\b(?:whoever|told|anew|nobody|somebody|came of)\b", page.read_text(), re.IGNORECASE)
    assert not found, "name the actor, in the present tense"


def test_every_page_is_linked_from_the_readme() -> None:
    assert set(re.findall(r"\((docs/[a-z-]+\.md)\)", README)) == {f"docs/{path.name}" for path in DOCS}


@pytest.mark.parametrize("variable", sorted({*re.findall(r"\bPROXY_[A-Z_]+\b", "".join(p.read_text() for p in PAGES))}))
def test_every_variable_that_is_named_is_one(variable: str) -> None:
    assert variable in {*VARIABLES, *(f"{name}_FILE" for name in SECRETS), "PROXY_"}
