"""Several runs side by side, as a table and as a figure: what each gained, and what it paid for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfft.config.load import read_resolved
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.evaluation.comparison_tables import changes_section, values_section
from rfft.evaluation.figure import Point, draw_points
from rfft.evaluation.methods import method_of
from rfft.evaluation.ranking import ComparedState, asked, ranking_section
from rfft.evaluation.seeds import seeds_section
from rfft.evaluation.store import EVALUATION, SUMMARY, read_json
from rfft.utils.log import warn, write_atomically

TABLE, FIGURE = "comparison.md", "comparison.png"


def compare(runs: Sequence[Path], out: Path, tie: float = 0.05) -> Path:
    """Write comparison.md and comparison.png of finished runs into `out`; returns the table's path.

    tie: of PickScore's verdicts on two pictures, see metrics/ranking.py.
    """
    rows = _rows([_read(run) for run in runs])
    if warning := _other_grids(rows):
        warn(warning)
    out.mkdir(parents=True, exist_ok=True)
    parts = [
        values_section(rows),
        changes_section(rows),
        seeds_section(rows),
        warning and f"Warning: {warning}\n",
        ranking_section(rows, tie),
    ]
    write_atomically(out / TABLE, "\n".join(part for part in parts if part))
    draw_points(_points(rows), out / FIGURE)
    return out / TABLE


def _read(run: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder, config and summary of one run; of a base model that was evaluated alone, too."""
    summary = read_json(run / SUMMARY)
    if not summary or not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no finished run (it has no {SUMMARY}); train it first")
    config = read_resolved(run / "config.yaml")
    if "rfnet" in config:
        raise UserError(f"{run}: a run of RFNet, which paints nothing; its metrics are in {EVALUATION}")
    if "base" not in summary:  # evaluate.enabled=false
        raise UserError(f"{run}: nothing to compare; measure the run with `rfft evaluate {run}` first")
    return run, config, summary


def _rows(read: Sequence[tuple[Path, dict[str, Any], dict[str, Any]]]) -> list[ComparedState]:
    """The base model of the first training run, unless it is a run itself; then every run."""
    rows: list[ComparedState] = []
    alone = [summary["base"] for _, _, summary in read if "tuned" not in summary]
    has_base = any(method_of({}, "base", base) == "base" for base in alone)
    for run, config, summary in read:
        if "tuned" in summary and not rows and not has_base:
            base = summary["base"]
            rows.append(ComparedState("base", method_of(config, "base", base), "base", "", base, run, "base"))
    for run, config, summary in read:
        state = "tuned" if "tuned" in summary else "base"
        kind = config["objective"]["regularizer"] if state == "tuned" else "base"
        steps = str(summary.get("steps", ""))
        method = method_of(config, state, summary[state])
        rows.append(ComparedState(config["run"]["name"], method, kind, steps, summary[state], run, state))
    return rows


def _other_grids(rows: Sequence[ComparedState]) -> str:
    """Which rows were asked for other pictures than the first one; "" if none."""
    grids = [(row.name, asked(read_json(row.run / EVALUATION))) for row in rows]
    known = [(name, grid) for name, grid in grids if grid]
    others = [name for name, grid in known if grid != known[0][1]]
    if not others:
        return ""
    return (
        f"{', '.join(others)}: evaluated on other products, prompts or seeds than {known[0][0]}, so that the "
        "metrics cannot be compared; `rfft evaluate` them all with the same settings"
    )


def _points(rows: Sequence[ComparedState]) -> list[Point]:
    named = zip(rows, labels(rows), strict=True)
    return [Point(label, store.values(row.metrics), row.kind) for row, label in named]


def labels(rows: Sequence[ComparedState]) -> list[str]:
    """The rows' methods; the run's name where several have the same."""
    times = Counter(row.method for row in rows)
    return [row.method if times[row.method] == 1 else row.name for row in rows]
