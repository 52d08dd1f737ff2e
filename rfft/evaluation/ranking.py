"""Models ranked by the PickScore of their pictures of the same prompts: a section of comparison.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rfft.evaluation.store import EVALUATION, read_json
from rfft.metrics.ranking import overall, rank_correlation, win_rates

Metrics = dict[str, Any]
SAME = ("id", "prompt", "seed")  # of a picture: what all models were asked


@dataclass(frozen=True)
class ComparedState:
    """A model in the comparison."""

    name: str
    method: str
    kind: str  # its regularizer, or base
    steps: str
    metrics: Metrics
    run: Path
    state: str  # of the run: base or tuned


def ranking_section(rows: Sequence[ComparedState], tie: float) -> str:
    """Win rates and rank correlations; empty unless there are PickScores of all on the same grid."""
    scores = [_scores(row) for row in rows]
    grids = {tuple(found) for found in scores}
    if len(rows) < 2 or len(grids) > 1 or not next(iter(grids)):
        return ""
    rates = win_rates(torch.tensor([list(found.values()) for found in scores]), tie)
    wins = overall(rates).tolist()
    order = sorted(range(len(rows)), key=lambda i: -wins[i])
    names = [rows[i].name for i in order]
    lines = [["run", "win rate", *(f"against {name}" for name in names)], ["---"] * (2 + len(names))]
    for i in order:
        against = ["" if i == j else f"{100 * rates[i, j]:.1f} %" for j in order]
        lines.append([rows[i].name, f"{100 * wins[i]:.1f} %", *against])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    intro = (
        f"Which picture of a prompt PickScore prefers, over {len(scores[0])} pictures; a tie (probabilities "
        f"closer than {tie:g}) counts half.\n"
    )
    return f"{intro}\n{table}{_correlations(rows, wins)}"


def _scores(row: ComparedState) -> dict[tuple[Any, ...], float]:
    """Score of each picture, by what was asked."""
    evaluation = read_json(row.run / EVALUATION)
    found = evaluation.get(row.state, {}).get("scores", {}).get("pickscore", [])
    return dict(zip(asked(evaluation), found, strict=True)) if found else {}


def asked(evaluation: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What each picture of an evaluation.json was asked to be; empty where that file is not there."""
    return [tuple(cell[name] for name in SAME) for cell in evaluation.get("cells", [])]


def _correlations(rows: Sequence[ComparedState], wins: list[float]) -> str:
    """Do other measures rank the models as PickScore does?"""
    measures = {
        "available, judge": "available_rate_judge",
        "available, RFNet": "available_rate_rfnet",
        "CLIP score": "clip_score",
    }
    lines = []
    for name, metric in measures.items():
        known = [row.metrics["metrics"][metric]["value"] for row in rows if metric in row.metrics["metrics"]]
        rho = rank_correlation(wins, known) if len(known) == len(rows) else None
        if rho is not None:
            lines.append(f"- {name}: {rho:.2f}\n")
    return f"\nSpearman's rank correlation of these win rates with\n\n{''.join(lines)}" if lines else ""
