"""The tables of comparison.md: each model's metrics, and their differences to the base model's."""

from __future__ import annotations

from collections.abc import Sequence

from rfft.evaluation.ranking import ComparedState, asked
from rfft.evaluation.store import EVALUATION, differences, load_estimates, read_json
from rfft.evaluation.tables import Metric, kind_of

METRICS = {  # columns, by the names of metrics in summary.json
    "available, RFNet": "available_rate_rfnet",
    "available, monitor": "available_rate_monitor",
    "available, judge": "available_rate_judge",
    "alignment": "alignment",
    "surface": "alignment_surface",
    "place": "alignment_place",
    "prop": "alignment_prop",
    "light": "alignment_light",
    "diversity": "diversity",
    "colourfulness": "colourfulness",
    "KID": "kid",
    "FID": "fid",
    "CLIP score": "clip_score",
    "PickScore": "pickscore",
    "product PSNR": "product_psnr",
    "product SSIM": "product_ssim",
}


def values_section(rows: Sequence[ComparedState]) -> str:
    """Return a table of the metrics that any of the models has, with their 95 % intervals."""
    states = [row.metrics["metrics"] for row in rows]
    shown = {name: metric for name, metric in METRICS.items() if any(metric in state for state in states)}
    heads = [f"{name} {kind_of(metric).arrow}" for name, metric in shown.items()]
    lines = [["run", "method", "steps", *heads]]
    for row, state in zip(rows, states, strict=True):
        lines.append(
            [row.name, row.method, row.steps, *(value_cell(name, state.get(name)) for name in shown.values())]
        )
    return markdown_table(lines)


def changes_section(rows: Sequence[ComparedState]) -> str:
    """Return a table of the paired differences to the base model; empty where nothing can be paired."""
    base = next((row for row in rows if row.method == "base"), None)
    if base is None:
        return ""
    own, pictures = load_estimates(base.run, base.state), asked(read_json(base.run / EVALUATION))
    paired = [row for row in rows if row is not base and asked(read_json(row.run / EVALUATION)) == pictures]
    changes = [differences(load_estimates(row.run, row.state), own) for row in paired]
    shown = {name: metric for name, metric in METRICS.items() if any(metric in found for found in changes)}
    if not shown:
        return ""
    lines = [["run", *(f"{name} {kind_of(metric).arrow}" for name, metric in shown.items())]]
    for row, found in zip(paired, changes, strict=True):
        lines.append([row.name, *(change_cell(metric, found.get(metric)) for metric in shown.values())])
    return (
        "Change against the base model, paired on the same products, prompts and noise, in points where the "
        "metric is a share; 95 % intervals by drawing whole products anew, bold where zero is not in "
        "them.\n\n" + markdown_table(lines)
    )


def value_cell(name: str, metric: Metric | None) -> str:
    """Return a metric with its interval; "" for none."""
    return "" if metric is None else kind_of(name).text(metric["value"]) + kind_of(name).range(metric)


def change_cell(name: str, change: Metric | None) -> str:
    """Return a difference with its interval, bold where zero is not in it; "" for none."""
    if change is None:
        return ""
    kind = kind_of(name)
    text = kind.text(change["value"], "+", "") + kind.range(change, "+")
    return f"**{text}**" if "low" in change and (change["low"] > 0 or change["high"] < 0) else text


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first line is its head."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
