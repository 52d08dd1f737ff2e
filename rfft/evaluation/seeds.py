"""Runs that differ in nothing but their seed: the mean of each metric over them, and its range."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rfft.config.load import read_resolved
from rfft.evaluation.ranking import ComparedState

NOT_SETTINGS = ("run", "tracker")  # groups of a config in which runs of one arm may differ


def seed_groups(rows: Sequence[ComparedState]) -> list[list[int]]:
    """Return the indices of the tuned models that one config has trained with several seeds, by config."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.state == "tuned":
            groups.setdefault(_settings(row.run), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def seeds_section(
    rows: Sequence[ComparedState],
    columns: Mapping[str, Sequence[float | None]],
    text: Callable[[str, float], str],
) -> str:
    """Return a table with a row for each method that was trained with several seeds; empty without any.

    `columns` has the metrics' values for all rows; text(column, value) is how one is shown.
    """
    groups = seed_groups(rows)
    if not groups:
        return ""
    lines = [["runs", "method", "seeds", *columns], ["---"] * (3 + len(columns))]
    for group in groups:
        names = ", ".join(rows[i].name for i in group)
        cells = [_spread([values[i] for i in group], name, text) for name, values in columns.items()]
        lines.append([names, rows[group[0]].method, str(len(group)), *cells])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"The same settings with several seeds: mean, and in brackets the least and the most.\n\n{table}"


def _spread(values: Sequence[float | None], name: str, text: Callable[[str, float], str]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean, least, most = sum(known) / len(known), min(known), max(known)
    return f"{text(name, mean)} ({text(name, least)} to {text(name, most)})"


def _settings(run: Path) -> str:
    """The run's settings without its name, folder and seed, to be compared with others'."""
    config = read_resolved(run / "config.yaml")
    return json.dumps(
        {name: group for name, group in config.items() if name not in NOT_SETTINGS}, sort_keys=True
    )
