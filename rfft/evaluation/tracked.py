"""What a tracker gets of an evaluation: a row for each picture, the same in every run, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfft.evaluation import store
from rfft.evaluation.tables import kind_of
from rfft.evaluation.verdicts import recorded_verdicts, verdict_name
from rfft.metrics.verdict import AVAILABLE

NETWORKS = ("rfnet", "judge")  # the same in every run: not the monitor
COLUMNS = (
    *("key", "product", "prompt", "seed", "base", "tuned"),
    *(f"{state}_{network}" for network in NETWORKS for state in store.STATES),
    *(f"change_{network}" for network in NETWORKS),
    *(f"available_{state}_{network}" for network in NETWORKS for state in store.STATES),
)
SHOWN = 1000  # rows of the table that have their pictures: it is made in memory
CHANGES = {(False, True): "fixed", (True, False): "broken"}  # available before, available after


@dataclass(frozen=True)
class PictureTable:
    """A table whose cells may be pictures, uint8 [H,W,3]; None where a run has no such value."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def picture_table(run: Path) -> PictureTable:
    """Lay a run's evaluated pictures side by side, base and tuned, with the verdicts of both networks.

    `key` tells product, prompt and seed and is the same in every run of the same grid, so that tables of two
    runs can be joined by it; the first SHOWN rows have their pictures. `available_*` are probabilities of the
    label available, `change_*` fixed, broken or same.
    """
    evaluation = store.read_json(run / store.EVALUATION)
    there = [state for state in store.STATES if state in evaluation]
    pictures = {state: store.pictures(run, state) for state in there}
    verdicts = {state: evaluation[state]["probabilities"] for state in there}
    rows = []
    for i, cell in enumerate(evaluation.get("cells", [])):
        row = {
            "key": f"{cell['id']} | {cell['prompt']} | {cell['seed']}",
            "product": cell["id"],
            "prompt": cell["prompt"],
            "seed": cell["seed"],
        }
        if i < SHOWN:
            row |= {state: pictures[state][i].permute(1, 2, 0).numpy() for state in there}
        for network in NETWORKS:
            row |= _verdicts(network, {s: v[network][i] for s, v in verdicts.items() if network in v})
        rows.append([row.get(column) for column in COLUMNS])
    return PictureTable(COLUMNS, rows)


def _verdicts(network: str, rows: Mapping[str, Sequence[float] | None]) -> dict[str, Any]:
    """Columns of one picture and network, from its probabilities [K] by state; None: not finite."""
    found: dict[str, Any] = {}
    verdicts = {state: int(recorded_verdicts([row])) for state, row in rows.items()}
    for state, row in rows.items():
        found[f"{state}_{network}"] = verdict_name(verdicts[state], len(row or ()))
        found[f"available_{state}_{network}"] = None if row is None else row[AVAILABLE]
    if len(rows) == len(store.STATES):
        before, after = (verdicts[state] == AVAILABLE for state in store.STATES)
        found[f"change_{network}"] = CHANGES.get((before, after), "same")
    return found


def summary_scalars(summary: Mapping[str, Any]) -> dict[str, float]:
    """Flatten summary.json to base/NAME, tuned/NAME and change/NAME: what the exported weights reach."""
    groups = {state: summary[state] for state in store.STATES if summary.get(state)}
    groups["change"] = {"metrics": summary.get("change", {})}
    named = (store.scalars(state, group) for group, state in groups.items())
    return {name: value for scalars in named for name, value in scalars.items()}


def best_of(name: str) -> str:
    """Return which value of a metric is its best, "max" or "min"; `name` without its group (eval/)."""
    higher = name != "loss" and kind_of(name).higher_is_better
    return "max" if higher else "min"
