"""What models gained, and what they paid for it: a panel for each thing that collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfft.evaluation.comparison_tables import METRICS

PAID = ("prop", "diversity", "colourfulness", "KID")
COLOURS = {"none": "tab:red", "kl": "tab:orange", "cc": "tab:blue", "base": "black"}
OTHER = "tab:green"
MARKERS = "os^DvP<X>"  # of the models, in turn


@dataclass(frozen=True)
class Point:
    """A model in the figure."""

    label: str
    values: Mapping[str, float]  # by the names of metrics in summary.json
    kind: str = ""  # its regularizer, or base
    curve: str = ""  # points of one curve are joined, in their order


def draw_points(points: Sequence[Point], path: Path) -> None:
    """Draw each thing that may be paid over the available rate, the judge's where all have that."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(PAID), 4), layout="constrained")
    shown: dict[str, Any] = {}  # by label
    judge = all(METRICS["available, judge"] in point.values for point in points)
    gained = METRICS["available, judge" if judge else "available, RFNet"]
    for axis, name in zip(figure.subplots(1, len(PAID)), PAID, strict=True):
        _draw_curves(axis, points, gained, METRICS[name])
        for i, point in enumerate(points):
            if gained not in point.values or METRICS[name] not in point.values:
                continue
            marker = "*" if point.label == "base" else MARKERS[i % len(MARKERS)]
            at = point.values[gained], point.values[METRICS[name]]
            colour = COLOURS.get(point.kind, OTHER)
            shown[point.label] = axis.scatter(*at, color=colour, marker=marker, s=60, zorder=2)
        axis.set_xlabel("available rate" + (" (judge)" if judge else " (RFNet)"))
        axis.set_title(f"{name} (less is better)" if name == "KID" else name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_curves(axis: Any, points: Sequence[Point], gained: str, paid: str) -> None:
    for curve in dict.fromkeys(point.curve for point in points if point.curve):
        own = [point for point in points if point.curve == curve]
        line = [(p.values[gained], p.values[paid]) for p in own if {gained, paid} <= p.values.keys()]
        if line:
            colour = COLOURS.get(own[0].kind, OTHER)
            axis.plot(*zip(*line, strict=True), color=colour, linewidth=1, alpha=0.6, zorder=1)
