"""Curves of a run's metrics.jsonl, as small SVGs for its report."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rfft.utils.log import read_metrics

GREY, LINE = "#8a8f98", "#3f83d1"  # read well on white and on black
TITLES = {
    "train/available": "available in the batch",
    "train/f_ac": "F_AC, cross-entropy toward “available”",
    "train/l_cc": "L_CC, distance of guidance directions",
    "train/l_kl": "L_KL, distance of predicted noises",
    "train/loss": "F_total",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm before clipping",
}


@dataclass(frozen=True)
class Chart:
    title: str
    uri: str


def charts(metrics: Path) -> list[Chart]:
    """Draw a curve for every scalar of metrics.jsonl that takes a course; known ones first."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(metrics):
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                series.setdefault(name, []).append((row["step"], value))
    moving = [name for name, points in series.items() if len(points) > 2 and len({y for _, y in points}) > 1]
    names = [name for name in TITLES if name in moving] + sorted(set(moving) - TITLES.keys())
    return [
        Chart(TITLES.get(name, name), draw_chart(series[name], noisy=name != "train/lr")) for name in names
    ]


def draw_chart(points: list[tuple[float, float]], noisy: bool) -> str:
    """Return the data URI of a small SVG: the values, and over many noisy ones their running mean."""
    steps, values = np.array(points, dtype=float).T
    figure = Figure(figsize=(3.6, 2.0), layout="constrained")
    axes = figure.add_subplot()
    many = noisy and len(values) >= 10
    axes.plot(steps, values, color=LINE, linewidth=1 if many else 1.8, alpha=0.35 if many else 1)
    if many:
        axes.plot(steps, smooth(values, len(values) // 10), color=LINE, linewidth=1.8)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_xlabel("optimizer step", color=GREY, fontsize=8)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=GREY)
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return data_uri("image/svg+xml", file.getvalue())


def smooth(values: np.ndarray, radius: int) -> np.ndarray:
    """Return means over a window of 2 radius + 1 values, smaller at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(i - radius, 0), np.minimum(i + radius + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
