"""What evaluation leaves in a run's folder: metrics, pictures, and how they read.

Shapes: N products and prompts, S seeds, H W pixels. A model state is called "base" or "tuned".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rfft.errors import UserError
from rfft.metrics.verdict import is_accepted
from rfft.utils import contact_sheet
from rfft.utils.log import write_atomically

EVALUATION, SUMMARY = "evaluation.json", "summary.json"
COMPARISON = "samples/before_after.png"
STATES = ("base", "tuned")
COUNTERS = ("seconds", "steps", "grad_samples", "denoiser_forwards")
COLUMNS, COMPARED = 12, 96  # pictures in a row and in all of the comparison
PICTURE_METRICS = (  # metrics of the pictures themselves; digits; is more better?
    *(("diversity", 3, 1), ("vendi", 2, 1), ("colourfulness", 1, 1), ("kid", 4, -1), ("fid", 1, -1)),
    *(("clip_score", 2, 1), ("pickscore", 2, 1), ("product_psnr", 1, 1), ("product_ssim", 3, 1)),
)
TITLES = {
    "vendi": "Vendi score",
    "kid": "KID to held-out available images",
    "fid": "FID to held-out available images",
    "clip_score": "CLIP score",
    "pickscore": "PickScore",
    "product_psnr": "product before pasting, PSNR in dB",
    "product_ssim": "product before pasting, SSIM",
}

Metrics = dict[str, Any]


def record(
    run: Path,
    state: str,
    cells: list[dict[str, Any]],
    metrics: Metrics,
    probabilities: dict[str, Any],
    scores: dict[str, list[float]],
) -> None:
    """Write one state into evaluation.json; the other one stays if it was painted on the same grid."""
    known = read_json(run / EVALUATION)
    if known.get("cells") != cells:
        known = {"cells": cells}
    # JSON knows no NaN: a product that is too thin for a pixel of its own has no fidelity
    finite = {name: [v if isfinite(v) else None for v in values] for name, values in scores.items()}
    known[state] = {"metrics": metrics, "probabilities": probabilities, "scores": finite}
    write_atomically(run / EVALUATION, json.dumps(known, indent=1) + "\n")


def recorded(run: Path, state: str) -> Metrics | None:
    """A state's metrics, if it has been evaluated."""
    return read_json(run / EVALUATION).get(state, {}).get("metrics")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that this program wrote; empty without the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON; remove the file and evaluate again") from None


def save_pictures(run: Path, state: str, images: Tensor) -> None:
    """The pictures [N,S,3,H,W] as one plain sheet: a row of seeds for each product and prompt."""
    (run / "samples").mkdir(exist_ok=True)
    contact_sheet.save_png(_pictures(run, state), contact_sheet.tile(images.flatten(0, 1), images.shape[1]))


def load_pictures(run: Path, state: str) -> Tensor:
    """The pictures [N*S,3,H,W] that save_pictures() wrote."""
    cells = read_json(run / EVALUATION)["cells"]
    seeds = 1 + max(cell["seed"] for cell in cells)
    return contact_sheet.untile(contact_sheet.read_png(_pictures(run, state)), seeds, len(cells))


def _pictures(run: Path, state: str) -> Path:
    return run / "samples" / f"{state}.png"


def accepted(run: Path, state: str) -> Tensor:
    """RFNet's verdict on each picture [N*S]."""
    return is_accepted(torch.tensor(read_json(run / EVALUATION)[state]["probabilities"]["rfnet"]))


def finish(run: Path, counters: dict[str, float]) -> dict[str, Any]:
    """Once both states are recorded: the comparison, and summary.json with the run's counters."""
    old = read_json(run / SUMMARY)
    kept = {name: counters.get(name, old.get(name)) for name in COUNTERS}
    summary = {state: recorded(run, state) for state in STATES} | kept
    base, tuned = (load_pictures(run, state)[:COMPARED] for state in STATES)
    verdicts = accepted(run, "base")[:COMPARED], accepted(run, "tuned")[:COMPARED]
    columns = min(COLUMNS, len(base))
    contact_sheet.save_png(run / COMPARISON, contact_sheet.before_after(base, tuned, verdicts, columns))
    write_atomically(run / SUMMARY, json.dumps(summary, indent=2) + "\n")  # last: says that all is there
    return summary


def finish_base(run: Path) -> dict[str, Any]:
    """summary.json of a folder in which only the base model was evaluated."""
    summary = {"base": recorded(run, "base")}
    write_atomically(run / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def scalars(metrics: Metrics) -> dict[str, float]:
    """The metrics under the names that trackers and metrics.jsonl have them by."""
    flat = {f"available_rate_{name}": value["rate"] for name, value in metrics["available_rate"].items()}
    for network, failures in metrics["failures"].items():
        flat |= {f"{label}_{network}": value["rate"] for label, value in failures.items()}
    flat |= {f"alignment_{name}": value["rate"] for name, value in metrics.get("alignment_by", {}).items()}
    flat |= {f"success_at_{k}": value for k, value in enumerate(metrics["success_at"], start=1)}
    plain = ("attempts", "alignment", *(name for name, _, _ in PICTURE_METRICS))
    flat |= {name: metrics[name] for name in plain if name in metrics}
    return {f"eval/{name}": value for name, value in flat.items()}


def guardrails(base: Metrics, tuned: Metrics, min_alignment: float, min_diversity: float) -> list[str]:
    """Warnings for what fell below its share of the base model's; a sudden fall means collapse.

    CLIP score stands for alignment where no probe reads that off the pictures.
    """
    alignment = "alignment" if "alignment" in base else "clip_score"
    warnings = []
    for name, least in ((alignment, min_alignment), ("diversity", min_diversity)):
        if name in base and name in tuned and tuned[name] < least * base[name]:
            title, reached = TITLES.get(name, name), tuned[name] / base[name]
            warnings.append(
                f"{title} fell to {reached:.0%} of the base model's, below the {least:.0%} allowed"
            )
    return warnings


@dataclass(frozen=True)
class MetricRow:
    """A figure of both states, as people read it."""

    name: str
    base: str
    tuned: str
    change: str
    better: bool | None  # None: still within the base's interval, or it has none


def rows(base: Metrics, tuned: Metrics | None = None) -> list[MetricRow]:
    """The metrics that both states have; those of the base model, if it was evaluated alone."""
    before = shown_metrics(base)
    if tuned is None:
        return [MetricRow(name, str(shown), "", "", None) for name, shown in before.items()]
    after = shown_metrics(tuned)
    return [_row(name, before[name], after[name]) for name in before if name in after]


@dataclass(frozen=True)
class ShownMetric:
    value: float
    low: float | None = None
    high: float | None = None
    digits: int | None = None  # None: a share, shown in percent
    sign: int = 1  # -1: less is better

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return self.text(self.value)
        return f"{self.text(self.value)} ({self.text(self.low, '')} to {self.text(self.high, '')})"

    def text(self, value: float, unit: str = " %", plus: str = "") -> str:
        return f"{100 * value:{plus}.1f}{unit}" if self.digits is None else f"{value:{plus}.{self.digits}f}"


def _row(name: str, before: ShownMetric, after: ShownMetric) -> MetricRow:
    change = after.value - before.value
    text = after.text(change, " points", "+")
    better = None
    if before.low is not None and before.high is not None:
        same = before.low <= after.value <= before.high
        better = None if same else change * after.sign > 0
    return MetricRow(name, str(before), str(after), text, better)


def shown_metrics(metrics: Metrics) -> dict[str, ShownMetric]:
    """The metrics under the names that people read, in the order of the table."""
    names = {"rfnet": "RFNet", "judge": "judge"}
    shown = {f"available ({names[n]})": _share(rate) for n, rate in metrics["available_rate"].items()}
    for network, failures in metrics["failures"].items():
        for label, rate in failures.items():
            shown[f"{label.replace('_', ' ')} ({names[network]})"] = _share(rate, sign=-1)
    shown["attempts until accepted"] = _number(metrics, "attempts", 2, sign=-1)
    last = len(metrics["success_at"])
    within = metrics.get("success_at_interval", [(None, None)])[-1]
    shown[f"accepted within {last} attempts"] = ShownMetric(metrics["success_at"][-1], *within)
    if "alignment" in metrics:
        shown["alignment"] = _number(metrics, "alignment")
        shown |= {f"alignment: {name}": _share(rate) for name, rate in metrics["alignment_by"].items()}
    for name, digits, sign in PICTURE_METRICS:
        if name in metrics:
            shown[TITLES.get(name, name)] = _number(metrics, name, digits, sign)
    return shown


def _share(rate: dict[str, float], sign: int = 1) -> ShownMetric:
    return ShownMetric(rate["rate"], rate["low"], rate["high"], sign=sign)


def _number(metrics: Metrics, name: str, digits: int | None = None, sign: int = 1) -> ShownMetric:
    low, high = metrics.get(f"{name}_interval", (None, None))
    return ShownMetric(metrics[name], low, high, digits, sign)


def painted(metrics: Mapping[str, Any]) -> str:
    """How the pictures behind an evaluation's metrics differ from a model's plain first ones; "" if not."""
    parts = []
    if metrics.get("only_accepted"):
        attempts = metrics["max_attempts"]
        parts.append(
            f"what RFNet refused was painted anew (recurrent generation, {attempts} attempts at most)"
        )
    if words := metrics.get("quality_words"):
        parts.append(f"“{words}” was added to every prompt")
    if (negative := metrics.get("negative_prompt")) is not None:
        parts.append(f"“{negative}” was every negative prompt")
    return "; ".join(parts)


def table(base: Metrics, tuned: Metrics | None = None) -> Table:
    """Before and after, or the base model alone, for the terminal."""
    columns = ["base"] if tuned is None else ["base", "tuned", "change"]
    title = f"{'the base model' if tuned is None else 'before and after'}, 95 % intervals in brackets"
    shown = Table("", *columns, title=title, caption=painted(base) or None)
    for column in shown.columns[1:]:
        column.justify = "right"
    styles = {True: "green", False: "red", None: ""}
    for row in rows(base, tuned):
        cells = (row.base, row.tuned, Text(row.change, styles[row.better]))
        shown.add_row(row.name, *cells[: len(columns)])
    return shown
