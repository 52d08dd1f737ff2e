"""Several runs side by side, as a table and as a figure: what each gained, and what it paid for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rfft.errors import UserError
from rfft.log import write_atomically
from rfft.results import SUMMARY, read_json

TABLE, FIGURE = "comparison.md", "comparison.png"
Figures = dict[str, Any]
METRICS: dict[str, Callable[[Figures], float | None]] = {
    "available, RFNet": lambda f: _rate(f["available_rate"].get("rfnet")),
    "available, judge": lambda f: _rate(f["available_rate"].get("judge")),
    "alignment": lambda f: f.get("alignment"),
    "surface": lambda f: _rate(f.get("alignment_by", {}).get("surface")),
    "place": lambda f: _rate(f.get("alignment_by", {}).get("place")),
    "prop": lambda f: _rate(f.get("alignment_by", {}).get("prop")),
    "light": lambda f: _rate(f.get("alignment_by", {}).get("light")),
    "diversity": lambda f: f.get("diversity"),
    "colourfulness": lambda f: f.get("colourfulness"),
    "KID": lambda f: f.get("kid"),
}
SHARES = ("available, RFNet", "available, judge", "alignment", "surface", "place", "prop", "light")
PAID = ("prop", "diversity", "colourfulness", "KID")  # what collapses; each has a panel of the figure
COLOURS = {"none": "tab:red", "kl": "tab:orange", "cc": "tab:blue", "base": "black"}


def _rate(share: dict[str, float] | None) -> float | None:
    return None if share is None else share["rate"]


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Write comparison.md and comparison.png of finished runs into `out`; returns the table's path."""
    read = [_read(run) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / TABLE, _table(read))
    _figure(read, out / FIGURE)
    return out / TABLE


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and summary of one run."""
    summary = read_json(run / SUMMARY)
    if "tuned" not in summary or not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no finished run (it has no {SUMMARY}); train it first")
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")), summary


def _name(config: dict[str, Any]) -> str:
    objective = config["objective"]
    if objective["regularizer"] == "none":
        return "none"
    return f"{objective['regularizer']}, beta {objective['beta']:g}"


def _table(read: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    header = ["run", "regularizer", "steps", *METRICS]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    lines.append("| " + " | ".join(["base", "", "", *_cells(read[0][1]["base"])]) + " |")
    for config, summary in read:
        first = [config["run"]["name"], _name(config), str(summary["steps"])]
        lines.append("| " + " | ".join([*first, *_cells(summary["tuned"])]) + " |")
    return "\n".join(lines) + "\n"


def _cells(figures: Figures) -> list[str]:
    cells = []
    for name, metric in METRICS.items():
        value = metric(figures)
        if value is None:
            cells.append("")
        else:
            cells.append(f"{100 * value:.1f} %" if name in SHARES else f"{value:.3g}")
    return cells


def _figure(read: Sequence[tuple[dict[str, Any], dict[str, Any]]], path: Path) -> None:
    """One panel for each thing that may be paid: its value over the available rate, a point for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(PAID), 3.6), layout="constrained")
    axes = figure.subplots(1, len(PAID))
    gained = METRICS["available, judge"] if _judged(read) else METRICS["available, RFNet"]
    points = [("base", "base", read[0][1]["base"])]
    points += [(config["objective"]["regularizer"], _name(config), s["tuned"]) for config, s in read]
    for axis, name in zip(axes, PAID, strict=True):
        for kind, label, figures in points:
            x, y = gained(figures), METRICS[name](figures)
            if x is None or y is None:
                continue
            axis.scatter(x, y, color=COLOURS[kind], marker="*" if kind == "base" else "o", s=60, label=label)
            axis.annotate(label, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
        axis.set_xlabel("available rate" + (" (judge)" if _judged(read) else " (RFNet)"))
        axis.set_title(f"{name} (less is better)" if name == "KID" else name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _judged(read: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    return all("judge" in summary["tuned"]["available_rate"] for _, summary in read)
