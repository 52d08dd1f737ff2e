"""Runs that differ in nothing but their seed: the mean of each metric over them, and its range."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rfft.config.load import read_resolved
from rfft.evaluation.comparison_tables import METRICS, markdown_table
from rfft.evaluation.ranking import ComparedState
from rfft.evaluation.tables import Metric, kind_of

NOT_SETTINGS = ("run", "tracker")  # groups of a config in which runs of one arm may differ


def seed_groups(rows: Sequence[ComparedState]) -> list[list[int]]:
    """Return the indices of the tuned models that one config has trained with several seeds, by config."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.state == "tuned":
            groups.setdefault(_settings(row.run), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def seeds_section(rows: Sequence[ComparedState]) -> str:
    """Return a table with a row for each method that was trained with several seeds; empty without any."""
    groups = seed_groups(rows)
    if not groups:
        return ""
    states = [row.metrics["metrics"] for row in rows]
    shown = {name: metric for name, metric in METRICS.items() if any(metric in state for state in states)}
    heads = [f"{name} {kind_of(metric).arrow}" for name, metric in shown.items()]
    lines = [["runs", "method", "seeds", *heads]]
    for group in groups:
        names = ", ".join(rows[i].name for i in group)
        cells = [_spread([states[i].get(metric) for i in group], metric) for metric in shown.values()]
        lines.append([names, rows[group[0]].method, str(len(group)), *cells])
    head = "The same settings with several seeds: mean, and in brackets the least and the most."
    return f"{head}\n\n{markdown_table(lines)}"


def _spread(metrics: Sequence[Metric | None], name: str) -> str:
    known = [metric["value"] for metric in metrics if metric is not None]
    if len(known) < len(metrics):
        return ""
    text = kind_of(name).text
    return f"{text(sum(known) / len(known))} ({text(min(known))} to {text(max(known))})"


def _settings(run: Path) -> str:
    """The run's settings without its name, folder and seed, to be compared with others'."""
    config = read_resolved(run / "config.yaml")
    return json.dumps(
        {name: group for name, group in config.items() if name not in NOT_SETTINGS}, sort_keys=True
    )
