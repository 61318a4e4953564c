"""What commands print: data on stdout, messages on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer

from proxy.settings import SettingsError
from proxy.telemetry.logs import escape_unseen

T = TypeVar("T")
#: Those that `escape_unseen` leaves to JSON; a message of several lines keeps them.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f]")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def refuse_on_error(read: Callable[[], T], where: str = "") -> T:
    """Return what a function returns, or print what it raises and exit; `where` is the option that it reads."""
    try:
        return read()
    except SettingsError as error:
        refuse(error.problems)
    except ValueError as error:
        refuse([f"{where}: {error}" if where else str(error)])


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    """Print rows: under the names of their columns on a terminal, and separated by tabs for programs.

    A row may lack its last columns.
    """
    if as_json:
        print(to_json(rows))
        return
    if sys.stdout.isatty():
        print_table([{column: row.get(column, "") for column in columns} for row in rows], columns)
        return
    for row in rows:
        print("\t".join(str(row[column]) for column in columns if column in row))


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print columns under their names. A total is a row that lacks the columns that group the others."""
    cells = [columns, *([escape_unseen(str(row.get(column, "total"))) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def print_done(fields: Mapping[str, Any], status: str, as_json: bool) -> None:
    """Print what was done, and as JSON what it was done to as well."""
    print(to_json({**fields, "status": status}) if as_json else status)


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far long work is, if stderr is a terminal; yields what gets how much is done, and of how much."""
    with typer.progressbar(length=0, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def report(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield report


def to_json(document: object, *, for_people: bool = False) -> str:
    """Write JSON in one line, or indented. Names of users can hold what a terminal obeys; that is escaped."""
    try:
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2 if for_people else 0).decode()
    except TypeError:
        # Half characters: of a variable that is no UTF-8, or of an escape in a plan file.
        text = json.dumps(document, indent=2 if for_people else None)
    return escape_unseen(text)


def say(words: str) -> None:
    """Print a message; an argument or an answer that it quotes can hold what a terminal obeys."""
    shown = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", words)
    print(escape_unseen(shown), file=sys.stderr)


def refuse(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        say(problem)
    raise typer.Exit(1)
