"""`fal-proxy doctor`: checks a running deployment from outside, through all that stands in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from proxy.cli.doctor.findings import FAIL, Finding
from proxy.cli.output import AsJson, refuse, refuse_on_error, to_json
from proxy.settings import IN_QUOTES, check_bearer, check_origin, is_quoted
from proxy.strict_json import parse_strictly
from proxy.telemetry.logs import escape_unseen

#: Where a credential may be. An option would show it to everybody on the machine.
KEY, SESSION = "FAL_PROXY_KEY", "FAL_PROXY_SESSION"
#: What a model that describes pictures takes.
USUAL_INPUT = {
    "prompt": "Answer with one word: what is this?",
    "image_url": "https://storage.googleapis.com/falserverless/model_tests/llavav15/llava_v1_5_radar.jpg",
}


def doctor(
    url: Annotated[str, typer.Argument(help="The public address of the proxy.")],
    origin: Annotated[str | None, typer.Option(help="A page's origin that must be allowed to call.")] = None,
    call: Annotated[str | None, typer.Option(help="Run one job on this endpoint, which costs what it costs.")] = None,
    input_file: Annotated[str | None, typer.Option("--input", help="A JSON file with the input of that job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a running deployment from outside. FAL_PROXY_KEY (a tenant key) or FAL_PROXY_SESSION lets it check more."""
    # Only this command loads what it takes.
    from proxy.cli.doctor.examination import Examination, examine

    key, session = _read_credential(KEY), _read_credential(SESSION)
    page = None if origin is None else refuse_on_error(lambda: check_origin(origin), "--origin")
    examination = Examination(url.rstrip("/"), key, session, page, call, _read_input(input_file))
    findings = examine(examination)
    if as_json:
        print(to_json([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            _print(finding)
    if any(finding.level == FAIL for finding in findings):
        raise typer.Exit(1)


def _read_credential(name: str) -> str:
    text = os.environ.get(name, "").strip()
    if is_quoted(text):
        refuse([f"{name}: {IN_QUOTES}"])
    return refuse_on_error(lambda: check_bearer(text), name) if text else ""


def _read_input(path: str | None) -> dict[str, Any]:
    if path is None:
        return USUAL_INPUT
    try:
        document = parse_strictly(Path(path).read_bytes())
    except (OSError, ValueError) as problem:
        refuse([f"--input: {path} cannot be read ({type(problem).__name__})"])
    if not isinstance(document, dict):
        refuse(["--input: must be a JSON object"])
    return document


def _print(finding: Finding) -> None:
    # A message can quote what the server sent.
    print(escape_unseen(f"{finding.level:<4}  {finding.check:<10}  {finding.message}"))
    if finding.advice:
        print(escape_unseen(f"{'':<18}{finding.advice}"))
