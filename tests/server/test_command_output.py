"""What commands print of texts that users choose."""

from __future__ import annotations

import json

import pytest

from proxy.cli.output import print_table, to_json

#: The name of a user can clear a terminal, turn the direction of writing, and end a line.
NAME, SHOWN = "al\x9b2Jice\u202e\u2028", "al\\u009b2Jice\\u202e\\u2028"


def test_a_table_escapes_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"subject": NAME, "calls": 1}, {"subject": "жанна", "calls": 2}], ("subject", "calls"))
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [SHOWN, "1"] and second.split() == ["жанна", "2"]
    assert first.index("1", len(SHOWN)) == second.index("2") == head.index("calls")


@pytest.mark.parametrize("for_people", [False, True])
def test_json_escapes_what_a_terminal_would_obey_and_means_the_same(for_people: bool) -> None:
    text = to_json({"subject": NAME}, for_people=for_people)
    assert SHOWN in text and text.replace("\n", "").isprintable()
    assert json.loads(text) == {"subject": NAME}
