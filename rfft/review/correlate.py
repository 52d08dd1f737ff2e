"""Which automatic figure can be trusted: do metrics rank evaluated models as people do?

M models (a run before or after training), P products, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rfft.errors import UserError, require
from rfft.evaluation import store
from rfft.evaluation.summary import number_products
from rfft.evaluation.tables import kind_of
from rfft.feedback.votes import Picture, Vote, latest
from rfft.metrics.estimate import RESAMPLES, Estimate, product_draws
from rfft.review.sources import place_of
from rfft.types import LABELS

LEAST = 3  # models: two are ranked alike or the other way round
WORTH = {"good": 1.0, "same": 0.0, "bad": -1.0, "left": 1.0, "right": 0.0}
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """An evaluated state of a run; `source` is what pictures in a store of votes have it as."""

    run: Path
    state: str

    @property
    def source(self) -> str:
        return f"{self.run.name}/{self.state}"


@dataclass(frozen=True)
class Opinion:
    """What votes say of one picture: a value of a measure of people's."""

    measure: str
    picture: str
    value: float


def correlate(runs: Sequence[Path], votes: Sequence[Vote], pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Return Spearman's correlation of every metric with everything that people were asked.

    Each comes with a 95 % bootstrap interval, for which both products and models are drawn again. Raises
    UserError for runs that were evaluated on different grids, and where people have seen too few models.
    """
    models, cells = _models(runs)
    metrics = {model: store.load_estimates(model.run, model.state) for model in models}
    found: list[dict[str, Any]] = []
    seen: dict[str, dict[str, float]] = {}
    for measure, people in _people(models, cells, votes, pictures).items():
        seen[measure] = {model.source: estimate.value for model, estimate in people.items()}
        if len(people) < LEAST:
            continue
        names = [name for name in metrics[models[0]] if all(name in metrics[model] for model in people)]
        for name in names:
            pairs = [(metrics[model][name], people[model]) for model in people]
            found.append({"people": measure, "metric": name, "models": len(pairs)} | _spearman(pairs))
    if not found:
        counts = ", ".join(f"{name} {len(values)}" for name, values in seen.items()) or "none"
        raise UserError(
            f"people have judged too few of these models for a ranking, {LEAST} are needed: {counts}; ask "
            "with `rfft review serve RUN ...` into one store"
        )
    found.sort(key=lambda row: (row["people"], -abs(row["spearman"] or 0)))
    return {"models": [model.source for model in models], "people": seen, "correlations": found}


def _models(runs: Sequence[Path]) -> tuple[list[Model], list[dict[str, Any]]]:
    """Return the evaluated states of runs, and the cells of their common grid."""
    models: list[Model] = []
    cells: list[dict[str, Any]] | None = None
    for run in runs:
        known = store.read_json(run / store.EVALUATION)
        require(known, f"{run}: not evaluated yet: rfft evaluate {run}")
        require(
            cells is None or known["cells"] == cells,
            f"{run} was evaluated on another grid than {runs[0]}: evaluate both on one, with --out FOLDER",
        )
        cells = known["cells"]
        models += [Model(run, state) for state in store.STATES if state in known]
    names = [model.source for model in models]
    require(
        len(set(names)) == len(names), "two of the runs have one folder name: people's votes tell them apart"
    )
    return models, cells or []


def _people(
    models: Sequence[Model],
    cells: Sequence[Mapping[str, Any]],
    votes: Sequence[Vote],
    pictures: Mapping[str, Picture],
) -> dict[str, dict[Model, Estimate]]:
    """Return what people think of each model, by measure: the mean over votes, with products resampled."""
    known = {model.source: model for model in models}
    products = number_products([cell["product"] for cell in cells])
    number = {place_of(cell): int(product) for cell, product in zip(cells, products, strict=True)}
    count = len(set(number.values()))
    sums: dict[str, dict[Model, Values]] = {}
    for opinion in _opinions(votes):
        picture = pictures.get(opinion.picture)
        if picture is None or picture.source not in known or picture.place not in number:
            continue
        table = sums.setdefault(opinion.measure, {}).setdefault(known[picture.source], np.zeros((2, count)))
        table[:, number[picture.place]] += opinion.value, 1
    draws = product_draws(count)
    return {
        measure: {model: _mean(table[model], draws) for model in models if model in table}
        for measure, table in sums.items()
    }


def _opinions(votes: Sequence[Vote]) -> Iterator[Opinion]:
    """Yield what each rater's last vote on a question says, of both pictures where there are two."""
    for vote in latest(votes):
        if vote.task == "labels":
            yield Opinion("available rate", vote.left, float(LABELS[0] in vote.answer["labels"]))
        elif vote.task == "scores":
            yield Opinion("score", vote.left, float(vote.answer["score"]))
        elif vote.task == "pairs":
            won = WORTH.get(vote.answer["better"], 0.5)
            yield Opinion("pairs won", vote.left, won)
            yield Opinion("pairs won", str(vote.right), 1 - won)
        else:
            for dimension, word in vote.answer.items():
                yield Opinion(f"GSB {dimension}", vote.left, WORTH[word])
                yield Opinion(f"GSB {dimension}", str(vote.right), -WORTH[word])


def _mean(cells: Values, draws: NDArray[np.int64]) -> Estimate:
    total, count = cells
    with np.errstate(invalid="ignore"):  # a resample without a vote
        return Estimate(float(total.sum() / count.sum()), (draws @ total) / (draws @ count))


def _spearman(pairs: Sequence[tuple[Estimate, Estimate]]) -> dict[str, Any]:
    """Return the correlation over models, with its interval; None where all are alike.

    Resamples in which only one model was drawn, or all are alike, rank nothing and are left out: `resamples`
    says how many remain.
    """
    first, second = (np.array([estimate.value for estimate in side]) for side in zip(*pairs, strict=True))
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    sides = (_replicates(side)[np.arange(RESAMPLES)[:, None], drawn] for side in zip(*pairs, strict=True))
    again = spearman(*sides)
    usable = again[np.isfinite(again)]
    value = float(spearman(first[None], second[None])[0])
    found: dict[str, Any] = {"spearman": value if np.isfinite(value) else None, "resamples": len(usable)}
    if len(usable) > 1:
        low, high = np.percentile(usable, [2.5, 97.5])
        found |= {"low": float(low), "high": float(high)}
    return found


def _replicates(estimates: Sequence[Estimate]) -> Values:
    """Return [R,M]; a figure that is not resampled by products in this way stays what it is."""
    return np.stack(
        [e.replicates if len(e.replicates) == RESAMPLES else np.full(RESAMPLES, e.value) for e in estimates],
        axis=1,
    )


def spearman(first: Values, second: Values) -> Values:
    """Return Spearman's rank correlation of each row [R] of two tables [R,M]; NaN where one ranks nothing."""
    ranks = [rankdata(side, axis=1, nan_policy="propagate") for side in (first, second)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def to_markdown(found: Mapping[str, Any]) -> str:
    """Return the correlations as tables, one for each thing that people were asked."""
    lines = [f"Models: {', '.join(found['models'])}.", ""]
    for measure, values in found["people"].items():
        told = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        lines += [f"**{measure}**: {told}", ""]
        rows = [row for row in found["correlations"] if row["people"] == measure]
        if rows:
            lines += ["| metric | Spearman | 95 % interval | models |", "| --- | ---: | ---: | ---: |"]
            lines += [_row(row) for row in rows] + [""]
    lines.append("Intervals: models and products drawn again; of few models they are wide, and say little.")
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> str:
    value = "all alike" if row["spearman"] is None else f"{row['spearman']:.2f}"
    interval = f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row else ""
    return f"| {kind_of(row['metric']).title} | {value} | {interval} | {row['models']} |"
