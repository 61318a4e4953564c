"""What commands print: data on stdout, messages on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer

from proxy.settings import SettingsError

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def refuse_on_error(read: Callable[[], T]) -> T:
    try:
        return read()
    except SettingsError as error:
        refuse(error.problems)
    except ValueError as error:
        refuse([str(error)])


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    if as_json:
        print(to_json(rows))
        return
    for row in rows:
        print("\t".join(str(row[column]) for column in columns))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print columns under their names; the last row is the total and lacks the columns that group the rows."""
    columns = list(rows[0])
    cells = [columns, *([str(row.get(column, "total")) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def to_json(document: object) -> str:
    return orjson.dumps(document).decode()


def to_iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def say(words: str) -> None:
    print(words, file=sys.stderr)


def refuse(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        say(problem)
    raise typer.Exit(1)
