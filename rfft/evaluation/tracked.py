"""What a tracker gets of an evaluation: a row for each picture, the same in every run, and the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfft.evaluation import store
from rfft.types import COARSE_LABELS, LABELS, label_names

NETWORKS = ("rfnet", "judge")
COLUMNS = (
    *("key", "product", "prompt", "seed", "base", "tuned"),
    *(f"{state}_{network}" for network in NETWORKS for state in store.STATES),
    *(f"change_{network}" for network in NETWORKS),
    *(f"available_{state}_{network}" for network in NETWORKS for state in store.STATES),
)
LESS_IS_BETTER = {"attempts", *(name for name, _, sign in store.PICTURE_METRICS if sign < 0)}
FAULTS = tuple(f"{label}_" for label in (*LABELS[1:], *COARSE_LABELS[1:]))
CHANGES = {(False, True): "fixed", (True, False): "broken"}  # available before, available after


@dataclass(frozen=True)
class PictureTable:
    """A table whose cells may be pictures, uint8 [H,W,3]; None where a run has no such value."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def picture_table(run: Path) -> PictureTable:
    """Lay a run's evaluated pictures side by side, base and tuned, with the verdicts of both networks.

    `key` tells product, prompt and seed and is the same in every run of the same grid, so that tables of two
    runs can be joined by it. `available_*` are probabilities of the label available, `change_*` fixed, broken
    or same.
    """
    evaluation = store.read_json(run / store.EVALUATION)
    there = [state for state in store.STATES if state in evaluation]
    pictures = {state: store.load_pictures(run, state).permute(0, 2, 3, 1).numpy() for state in there}
    verdicts = {state: evaluation[state]["probabilities"] for state in there}
    rows = []
    for i, cell in enumerate(evaluation.get("cells", [])):
        row = {
            "key": f"{cell['id']} | {cell['prompt']} | {cell['seed']}",
            "product": cell["id"],
            "prompt": cell["prompt"],
            "seed": cell["seed"],
        }
        row |= {state: pictures[state][i] for state in there}
        for network in NETWORKS:
            row |= _verdicts(network, {s: v[network][i] for s, v in verdicts.items() if network in v})
        rows.append([row.get(column) for column in COLUMNS])
    return PictureTable(COLUMNS, rows)


def _verdicts(network: str, probabilities: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Columns of one picture and network, from its probabilities [K] by state."""
    found: dict[str, Any] = {}
    names = {state: label_names(len(p))[p.index(max(p))] for state, p in probabilities.items()}
    for state, name in names.items():
        found[f"{state}_{network}"] = name
        found[f"available_{state}_{network}"] = probabilities[state][0]
    if len(names) == len(store.STATES):
        before, after = (names[state] == LABELS[0] for state in store.STATES)
        found[f"change_{network}"] = CHANGES.get((before, after), "same")
    return found


def summary_scalars(summary: Mapping[str, Any]) -> dict[str, float]:
    """Flatten summary.json to base/NAME, tuned/NAME and change/NAME: what the exported weights reach."""
    return dict(_scalars(summary))


def _scalars(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    states = {state: store.scalars(summary[state]) for state in store.STATES if summary.get(state)}
    for state, scalars in states.items():
        for name, value in scalars.items():
            yield name.replace("eval", state, 1), value
    for name, value in states.get("tuned", {}).items():
        if name in states["base"]:
            yield name.replace("eval", "change", 1), value - states["base"][name]


def less_is_better(name: str) -> bool:
    """Is a metric, as store.scalars() calls it without eval/, the better the lower it is?"""
    return name in LESS_IS_BETTER or name.startswith(FAULTS)
