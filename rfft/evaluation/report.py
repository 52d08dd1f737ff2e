"""report.html: what a run did, in one file that needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from rfft.config.describe import describe_objective
from rfft.config.load import flatten, read_resolved
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.types import label_names
from rfft.utils.log import read_metrics, write_atomically

SHOWN_AT_ONCE, SHOWN_AT_MOST = 12, 96  # pairs of pictures
THUMBNAIL = 256  # pixels; larger pictures are shrunk for the report
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
class Picture:
    uri: str
    accepted: bool
    verdict: str


@dataclass(frozen=True)
class Cell:
    """A product, prompt and seed before and after training; once, if the base model was evaluated alone."""

    prompt: str
    caption: str
    seed: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Chart:
    title: str
    uri: str


def write_report(run: Path) -> Path:
    """Write RUN/report.html from what lies in the run's folder; parts that are not there are left out."""
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"{run}: no config.yaml here, so no run")
    settings = read_resolved(config)
    if "rfnet" in settings:
        raise UserError(f"{run}: RFNet's runs have no report; their metrics are in {store.EVALUATION}")
    summary = store.read_json(run / store.SUMMARY)
    states = [state for state in store.STATES if summary.get(state)]
    metrics = [summary[state] for state in states]
    cells = read_cells(run, states) if states else []
    environment = Environment(loader=PackageLoader("rfft"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        config=settings,
        settings=config.read_text(encoding="utf-8"),
        environment=flatten(store.read_json(run / "environment.json")),
        summary=summary,
        objective=describe_objective(settings),
        states=states,
        tiles=tiles(metrics) if metrics else [],
        rows=store.rows(*metrics) if metrics else [],
        painted=store.painted(metrics[0]) if metrics else "",
        cells=cells[:SHOWN_AT_ONCE],
        more=cells[SHOWN_AT_ONCE:],
        charts=charts(run / "metrics.jsonl"),
    )
    write_atomically(run / "report.html", page)
    return run / "report.html"


def tiles(states: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Titles of the metrics one looks at first, and each state's."""
    names = {"rfnet": "available, by RFNet", "judge": "available, by the judge"}
    found: dict[str, list[str]] = {}
    for network in states[0]["available_rate"]:
        rates = [state["available_rate"][network]["rate"] for state in states]
        found[names[network]] = [f"{100 * rate:.1f} %" for rate in rates]
    if all("alignment" in state for state in states):
        found["prompt alignment"] = [f"{100 * state['alignment']:.1f} %" for state in states]
    if all("diversity" in state for state in states):
        found["diversity of backgrounds"] = [f"{state['diversity']:.3f}" for state in states]
    found["attempts until accepted"] = [f"{state['attempts']:.2f}" for state in states]
    return list(found.items())


def read_cells(run: Path, states: Sequence[str]) -> list[Cell]:
    """Empty where metrics or pictures of a state are missing."""
    evaluation = store.read_json(run / store.EVALUATION)
    if not evaluation.keys() >= set(states):
        return []
    try:
        pictures = {state: store.load_pictures(run, state) for state in states}
    except FileNotFoundError:
        return []
    cells = evaluation["cells"]
    order = sorted(range(len(cells)), key=lambda i: cells[i]["seed"])[:SHOWN_AT_MOST]  # every prompt first
    verdicts = {state: evaluation[state]["probabilities"]["rfnet"] for state in states}
    return [
        Cell(
            cells[i]["prompt"],
            cells[i]["caption"],
            cells[i]["seed"],
            [_picture(pictures[state][i], verdicts[state][i]) for state in states],
        )
        for i in order
    ]


def _picture(image: Tensor, probabilities: Sequence[float]) -> Picture:
    best = int(np.argmax(probabilities))
    name = label_names(len(probabilities))[best].replace("_", " ")
    verdict = f"{name} {100 * probabilities[best]:.0f}\N{NO-BREAK SPACE}%"
    return Picture(_picture_uri(image), best == 0, verdict)


def _picture_uri(image: Tensor) -> str:
    """Small pictures without loss; large ones as thumbnails, to keep the page light."""
    picture, file = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
    if picture.width <= THUMBNAIL // 2:
        picture.save(file, "PNG", optimize=True)
        return _uri("image/png", file.getvalue())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=88)
    return _uri("image/jpeg", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def charts(metrics: Path) -> list[Chart]:
    """A curve for every scalar of metrics.jsonl that takes a course; known ones first."""
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
    """Data URI of a small SVG: the values, and over many noisy ones their running mean."""
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
    return _uri("image/svg+xml", file.getvalue())


def smooth(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a window of 2 radius + 1 values, smaller at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(i - radius, 0), np.minimum(i + radius + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
