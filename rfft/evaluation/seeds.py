"""Runs that differ in nothing but their seed: the mean of each metric over them, and its range."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rfft.config.load import read_resolved
from rfft.evaluation.comparison_tables import METRICS, markdown
from rfft.evaluation.ranking import ComparedState
from rfft.evaluation.store import values
from rfft.evaluation.tables import kind_of

NOT_SETTINGS = ("run", "tracker")  # groups of a config in which runs of one arm may differ


def seed_groups(rows: Sequence[ComparedState]) -> list[list[ComparedState]]:
    """Return the tuned models that one config has trained with several seeds, by config."""
    groups: dict[str, list[ComparedState]] = {}
    for row in rows:
        if row.state == "tuned":
            groups.setdefault(_settings(row.run), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def seeds_section(rows: Sequence[ComparedState]) -> str:
    """Return a table with a row for each method that was trained with several seeds; empty without any."""
    groups = seed_groups(rows)
    if not groups:
        return ""
    measured = [[values(row.metrics) for row in group] for group in groups]
    shown = {
        title: name
        for title, name in METRICS.items()
        if any(all(name in found for found in group) for group in measured)
    }
    lines = [
        ["runs", "method", "seeds", *(f"{title} {kind_of(name).arrow}" for title, name in shown.items())]
    ]
    for group, found in zip(groups, measured, strict=True):
        names = ", ".join(row.name for row in group)
        cells = [_spread(name, [each[name] for each in found if name in each]) for name in shown.values()]
        lines.append([names, group[0].method, str(len(group)), *cells])
    intro = "The same settings with several seeds: mean, and in brackets the least and the most.\n\n"
    return intro + markdown(lines)


def _spread(name: str, found: Sequence[float]) -> str:
    if not found:
        return ""
    kind, mean = kind_of(name), sum(found) / len(found)
    return kind.text(mean) + kind.range({"low": min(found), "high": max(found)})


def _settings(run: Path) -> str:
    """The run's settings without its name, folder and seed, to be compared with others'."""
    config = read_resolved(run / "config.yaml")
    settings = {name: group for name, group in config.items() if name not in NOT_SETTINGS}
    return json.dumps(settings, sort_keys=True)
