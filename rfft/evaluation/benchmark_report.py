"""What a benchmark leaves: benchmark.json, a row for every evaluated run, and benchmark.md with a figure.

A method's figure is the mean over its seeds. Its interval comes from drawing whole products anew, for all
seeds and methods alike, so that differences between methods are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rfft.config.benchmark import BASE
from rfft.config.load import read_resolved
from rfft.evaluation import store
from rfft.evaluation.comparison_tables import METRICS, change_cell, markdown_table, value_cell
from rfft.evaluation.figure import Point, draw_points
from rfft.evaluation.methods import method_of
from rfft.evaluation.ranking import ComparedState
from rfft.evaluation.seeds import seeds_section
from rfft.evaluation.summary import Estimates, as_json
from rfft.evaluation.tables import kind_of
from rfft.metrics.estimate import Estimate, mean_of
from rfft.utils.log import write_atomically

ROWS, PAGE, FIGURE = "benchmark.json", "benchmark.md", "benchmark.png"
MACHINE = ("system", "cpus", "threads", "memory_gib", "accelerators")


@dataclass(frozen=True)
class Entry:
    """A run of a method, evaluated on a grid."""

    method: str
    grid: str  # "val" or "test"
    folder: Path  # of the evaluation
    settings: tuple[str, ...]  # of the method, and those that were searched
    run: Path | None = None  # the training's folder; None: nothing was trained
    seed: int | None = None
    flops: float = 0.0  # of the denoiser in the training
    curve: str = ""

    @property
    def state(self) -> str:
        return "base" if self.run is None else "tuned"

    def counters(self) -> dict[str, Any]:
        """What the training's summary says of its cost."""
        return {} if self.run is None else store.read_json(self.run / store.SUMMARY)


@dataclass(frozen=True)
class Chosen:
    """What the search of a method has come to."""

    method: str
    candidates: Sequence[Sequence[str]]
    metrics: Sequence[Mapping[str, float]]  # of each candidate on validation products
    number: int  # of the candidate that is taken


def row(entry: Entry) -> dict[str, Any]:
    """Return all that is known of a run: cost, machine, date, and every metric with its interval."""
    summary, counters = store.read_json(entry.folder / store.SUMMARY), entry.counters()
    environment = store.read_json((entry.run or entry.folder) / "environment.json")
    written = (entry.folder / store.SUMMARY).stat().st_mtime
    seconds = counters.get("seconds")
    return {
        "method": entry.method,
        "grid": entry.grid,
        "seed": entry.seed,
        "settings": list(entry.settings),
        "steps": counters.get("steps"),
        "tflop": round(entry.flops / 1e12, 3),
        "minutes": None if seconds is None else round(seconds / 60, 2),
        "denoiser_forwards": counters.get("denoiser_forwards"),
        "machine": {name: environment[name] for name in MACHINE if name in environment},
        "date": datetime.fromtimestamp(written, timezone.utc).date().isoformat(),
        "metrics": summary[entry.state]["metrics"],
    }


def write_benchmark(
    out: Path,
    facts: Mapping[str, Any],
    entries: Sequence[Entry],
    chosen: Sequence[Chosen],
    pairs: Sequence[tuple[str, str]],
) -> Path:
    """Write what there is so far; returns the page's path. facts: of the plan, at the head of both files."""
    rows = [row(entry) for entry in entries]
    searched = [{"method": c.method, "candidates": c.candidates, "chosen": c.number} for c in chosen]
    store.write_json(out / ROWS, {**facts, "search": searched, "rows": rows})
    tested = [entry for entry in entries if entry.grid == "test"]
    names = dict.fromkeys(entry.method for entry in tested)
    methods = {name: [entry for entry in tested if entry.method == name] for name in names}
    means = {name: seed_means(own) for name, own in methods.items()}
    to_base = [(name, BASE) for name in means if name != BASE]
    parts = [
        _head(facts, rows),
        _values(methods, means),
        _changes("Change against the base model", to_base, means),
        _changes("Differences", pairs, means),
        seeds_section([_compared(entry) for entry in tested]),
        *(_choice(found) for found in chosen),
        f"![what each method gained and paid]({FIGURE})\n" if means else "",
    ]
    write_atomically(out / PAGE, "\n".join(part for part in parts if part))
    if means:
        draw_points([_point(own[0], means[name]) for name, own in methods.items()], out / FIGURE)
    return out / PAGE


def seed_means(entries: Sequence[Entry]) -> Estimates:
    """Return the mean over a method's seeds of each metric in METRICS that all of them have."""
    found = [store.load_estimates(entry.folder, entry.state) for entry in entries]
    names = [name for name in METRICS.values() if all(name in each for each in found)]
    return {name: _mean([each[name] for each in found]) for name in names}


def _mean(estimates: list[Estimate]) -> Estimate:
    """Return the mean; of a share that is 0 in all of them, or 1, with the interval that one alone has."""
    exact = {estimate.exact for estimate in estimates}
    agreed = len(exact) == 1 and exact != {None}
    return estimates[0] if agreed or len(estimates) == 1 else mean_of(estimates)


def _head(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({row["date"] for row in rows})
    machines = sorted({f"{row['machine'].get('cpus', '?')} CPUs" for row in rows})
    told = [f"{name}: {value}" for name, value in facts.items()]
    told += [f"runs from {dates[0]} to {dates[-1]} on {', '.join(machines)}"] if rows else []
    return f"# Benchmark {facts['plan']}\n\n" + "".join(f"- {line}\n" for line in told)


def _values(methods: Mapping[str, Sequence[Entry]], means: Mapping[str, Estimates]) -> str:
    """Return the table of the methods: cost, and metrics as means over the seeds."""
    shown = _shown(means.values())
    if not shown:
        return ""
    lines = [["method", "", "seeds", "steps", "TFLOP", "minutes", *_heads(shown)]]
    for name, own in methods.items():
        found = as_json(means[name])
        counters = [entry.counters() for entry in own]
        cost = [str(counters[0].get("steps", "")), f"{own[0].flops / 1e12:.1f}" if own[0].run else "", ""]
        if own[0].run is not None:
            cost[2] = f"{sum(each['seconds'] for each in counters) / len(own) / 60:.1f}"
        seeds = str(len(own)) if own[0].run else ""
        lines.append([name, _compared(own[0]).method, seeds, *cost])
        lines[-1] += [value_cell(metric, found.get(metric)) for metric in shown.values()]
    return (
        "Means over seeds, on the grid of test products; in brackets 95 % intervals by drawing whole "
        "products anew. TFLOP: of the denoiser, in one training; minutes: of training alone.\n\n"
        + markdown_table(lines)
    )


def _changes(title: str, pairs: Sequence[tuple[str, str]], means: Mapping[str, Estimates]) -> str:
    """Return a table of one method's means less another's; "" where none of the pairs is there."""
    there = [(one, other) for one, other in pairs if one in means and other in means]
    shown = _shown([means[name] for pair in there for name in pair])
    if not there or not shown:
        return ""
    lines = [["methods", *_heads(shown)]]
    for one, other in there:
        found = store.differences(means[one], means[other])
        lines.append([f"{one} less {other}", *(change_cell(m, found.get(m)) for m in shown.values())])
    return (
        f"{title}: paired on the same products, prompts and noise, in points where the metric is a share; "
        f"bold where zero is not in the 95 % interval.\n\n{markdown_table(lines)}"
    )


def _choice(found: Chosen) -> str:
    """Return the table of a method's search."""
    names = sorted({name for values in found.metrics for name in values if name in METRICS.values()})
    shown = {name: metric for name, metric in METRICS.items() if metric in names}
    lines = [["settings", *_heads(shown), "taken"]]
    for i, (candidate, values) in enumerate(zip(found.candidates, found.metrics, strict=True)):
        cells = [kind_of(m).text(values[m]) if m in values else "" for m in shown.values()]
        lines.append([", ".join(candidate), *cells, "yes" if i == found.number else ""])
    title = f"Settings of {found.method}, chosen on validation products by one seed:"
    return f"{title}\n\n{markdown_table(lines)}"


def _shown(means: Any) -> dict[str, str]:
    known = {name for each in means for name in each}
    return {name: metric for name, metric in METRICS.items() if metric in known}


def _heads(shown: Mapping[str, str]) -> list[str]:
    return [f"{name} {kind_of(metric).arrow}" for name, metric in shown.items()]


def _compared(entry: Entry) -> ComparedState:
    """Return a run as comparisons have it."""
    metrics = store.read_json(entry.folder / store.SUMMARY)[entry.state]
    config = read_resolved(entry.folder / "config.yaml")
    kind = "base" if entry.run is None else config["objective"]["regularizer"]
    steps, method = str(entry.counters().get("steps", "")), method_of(config, entry.state, metrics)
    return ComparedState(entry.folder.name, method, kind, steps, metrics, entry.folder, entry.state)


def _point(entry: Entry, means: Estimates) -> Point:
    values = {name: found.value for name, found in means.items()}
    return Point(entry.method, values, _compared(entry).kind, entry.curve)
