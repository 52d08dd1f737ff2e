"""What commands print fits the terminal."""

import pytest

from rfft.cli.output import list_facts


def test_facts_fit_the_terminal_and_go_on_below_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    path = "a/very-long/path/" * 4
    facts = {"name": "short", "a longer name": "words and more words " * 5, "path": path}
    lines = list(list_facts(facts))
    assert lines[:2] == ["name           short", "a longer name  words and more words words and more words"]
    assert lines[-2:] == ["path", " " * 15 + path]  # a path is not broken: it can be copied
    assert all(len(line) <= 60 for line in lines[:-1])
    assert [line[:15].strip() for line in lines[2:-2]] == [""] * (len(lines) - 4)
