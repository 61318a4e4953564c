"""The README and docs/ list every setting, command, route, error and fault, and no other."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from proxy import cli, errors
from proxy.http.error_response import respond
from proxy.sandbox.control import Control
from proxy.sandbox.fault_kinds import FAULT_KINDS
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import Timing
from proxy.settings import DEFAULTS, SECRETS, VARIABLES
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


def test_the_settings_page_lists_exactly_the_settings_with_their_defaults() -> None:
    documented = {code(name): (code(default), what) for name, default, what in rows(page("settings"))}
    assert documented == {name: (DEFAULTS.get(name, ""), what) for name, what in VARIABLES.items()}


def test_the_plan_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = blocks(section(README, "Run it"), "yaml")
    path = tmp_path / "plans.yaml"
    path.write_text(text)
    file, _ = read_file(path)
    assert file.tenants[0].plan == "free" and len(file.plans["free"].quotas) == 1


def test_the_plan_file_of_the_limits_page_is_valid_and_names_every_field_of_a_plan(tmp_path: Path) -> None:
    text = blocks(page("limits").partition("## The plan file")[2], "yaml")[0]
    path = tmp_path / "plans.yaml"
    path.write_text(text)
    file, _ = read_file(path)
    assert file.tenants[0].guests.plan == "visitors" and file.plans["team"].max_tokens == 256
    assert set(yaml.safe_load(text)["plans"]["team"]) == set(type(file.plans["team"]).model_fields)


def commands(group: Any, path: tuple[str, ...] = ()) -> list[str]:
    inner = getattr(group, "commands", None)
    if inner is None:
        return [" ".join(path)]
    return [found for name, command in inner.items() for found in commands(command, (*path, name))]


def test_the_commands_page_lists_exactly_the_commands() -> None:
    text = blocks(page("commands"), "")[0]
    documented, known = set(), set(commands(typer.main.get_command(cli.main)))
    groups = {name.partition(" ")[0] for name in known if " " in name}
    for line in re.findall(r"^fal-proxy (.*)$", text, re.MULTILINE):
        group, _, rest = re.split(r"  +", line)[0].partition(" ")
        inside = rest.split(" | ") if group in groups else []
        documented |= {f"{group} {name.split()[0]}" for name in inside} or {group}
    assert documented == known


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_that_a_page_names_exists(path: Path) -> None:
    known = {tuple(name.split()) for name in commands(typer.main.get_command(cli.main))}
    text = path.read_text()
    code_spans = re.findall(r"`fal-proxy ([a-z][a-z-]+)(?: ([a-z-]+))?", text)
    in_blocks = re.findall(r"^(?:\S+/)?fal-proxy ([a-z-]+)(?: ([a-z-]+))?", "\n".join(blocks(text, "sh")), re.MULTILINE)
    for group, name in [*code_spans, *in_blocks]:
        assert (group,) in known or (group, name) in known, f"fal-proxy {group} {name}"


# Routes and errors


def test_the_api_page_lists_exactly_the_routes() -> None:
    documented = {
        (code(cells[0]), method)
        for cells in rows(page("api"))
        if cells[0].startswith("`/")
        for method in cells[1].split(", ")
    }
    assert documented == answered_routes()


def kinds(of: type[errors.ProxyError]) -> list[type[errors.ProxyError]]:
    return [of, *(kind for child in of.__subclasses__() for kind in kinds(child))]


def test_the_api_page_lists_exactly_the_errors_with_their_status() -> None:
    documented = {(int(cells[0]), code(cells[1])) for cells in rows(section(page("api"), "Errors"))}
    abstract = {errors.Unavailable}
    assert documented == {(kind.status, kind.code) for kind in kinds(errors.ProxyError) if kind not in abstract}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_error_that_a_page_names_exists_with_that_status(path: Path) -> None:
    known = {(str(kind.status), kind.code) for kind in kinds(errors.ProxyError)}
    assert set(re.findall(r"\b([45]\d\d) `([a-z_]+)`", path.read_text())) <= known


def test_the_example_of_an_error_has_the_fields_that_errors_have() -> None:
    (text,) = blocks(section(page("api"), "Errors"), "json")
    body = respond(errors.RateLimited("…", retry_after=3, scope="subject"), "…").body
    assert yaml.safe_load(text) == yaml.safe_load(bytes(body))


# The sandbox


def _as_json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_sandbox_page_lists_every_pace_with_its_default() -> None:
    documented = {code(cells[0]): cells[1] for cells in rows(page("sandbox")) if len(cells) == 3}
    assert documented == {one.name: _as_json(one.default) for one in fields(Timing)}


def test_the_sandbox_page_lists_every_fault() -> None:
    table = section(page("sandbox"), "In a prompt").partition("| fault |")[2]
    documented = re.findall(r"^\| `([a-z_]+)", table, re.MULTILINE)
    assert sorted(documented) == sorted(FAULT_KINDS)


def test_the_sandbox_page_lists_every_control_route() -> None:
    table = section(page("sandbox"), "By its control routes")
    for route in Control(SandboxState("key", Timing())).routes():
        assert f"/_sandbox{route.path}`" in table


# Changes


def test_changes_are_sorted_and_no_list_is_too_long() -> None:
    release = (ROOT / "CHANGELOG.md").read_text().partition("\n## ")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.*)$", release, re.MULTILINE) == [
        "Upgrade notes",
        "Added",
        "Changed",
        "Fixed",
        "Security",
    ]
    parts = [part.partition("\n") for part in re.split(r"^#+ ", release, flags=re.MULTILINE)]
    points = {title: len(re.findall(r"^- ", text, re.MULTILINE)) for title, _, text in parts}
    assert sum(points.values()) > 100
    assert {title: number for title, number in points.items() if number > 25} == {}, "sort them below headings (####)"


# Links, and what no page may contain


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_row_is_part_of_a_table(path: Path) -> None:
    """A blank line between two rows turns the rows after it into text."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, *others = table.splitlines()
        assert len(others) > 1 and set(others[0]) <= set("|-: ") and others[0].count("|") == head.count("|"), head


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_an_existing_page(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not link.startswith(("http://", "https://")):
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_make_target_that_a_page_names_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("text", [CONTRIBUTING.read_text(), page("architecture")], ids=["contributing", "architecture"])
def test_every_package_has_its_line(text: str) -> None:
    packages = {path.parent.name for path in (ROOT / "proxy").glob("*/__init__.py")}
    assert len(packages) > 10
    assert {name for name in packages if not re.search(rf"^\|.*`(?:proxy/)?{name}/`", text, re.MULTILINE)} == set()


def test_every_path_in_the_contributors_guide_exists() -> None:
    places = re.findall(r"`((?:proxy|tests|docs)/[a-z_./]*|README.md|CHANGELOG.md)`", CONTRIBUTING.read_text())
    assert len(places) > 10
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_no_forbidden_words(page: Path) -> None:
    found = re.findall(r"\b(?:whoever|told|anew|nobody|somebody|came of)\b", page.read_text(), re.IGNORECASE)
    assert not found, "name the actor, in the present tense"


def test_every_page_is_linked_from_the_readme() -> None:
    assert set(re.findall(r"\((docs/[a-z-]+\.md)\)", README)) == {f"docs/{path.name}" for path in DOCS}


@pytest.mark.parametrize("variable", sorted({*re.findall(r"\bPROXY_[A-Z_]+\b", "".join(p.read_text() for p in PAGES))}))
def test_every_variable_that_a_page_names_exists(variable: str) -> None:
    assert variable in {*VARIABLES, *(f"{name}_FILE" for name in SECRETS), "PROXY_"}
