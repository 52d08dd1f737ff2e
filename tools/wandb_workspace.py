"""Draw what W&B's workspace shows of offline runs, from the runs' own files: the picture in docs/wandb.md.

    python tools/wandb_workspace.py docs/wandb.png runs/strengths/*/

The runs' table, curves by step, and the evaluation tables of the first and the last run, joined by `key`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.wandb_records import OfflineRun, find_offline_runs, read_table

SETTINGS = ("objective.regularizer", "objective.beta", "trainer.steps")
SUMMARY = (
    *("tuned/available_rate_rfnet", "tuned/available_rate_judge", "change/available_rate_judge"),
    *("change/alignment", "change/diversity"),
)
CURVES = ("train/f_ac", "train/available", "val/available_rate_rfnet", "val/diversity")
COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple")
ROWS = 4  # of the joined table
GOOD, BAD = "tab:green", "tab:red"


def main(out: Path, folders: list[Path]) -> None:
    """Read the runs that have a W&B run, and draw them."""
    found = {folder.name: find_offline_runs(folder) for folder in folders}
    runs = {name: starts for name, starts in found.items() if starts}
    figure = Figure(figsize=(13, 11), layout="constrained")
    heights = [0.7 + 0.25 * len(runs), 2.4, 6.4]
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_runs(top, runs)
    draw_curves(middle, runs)
    draw_joined(bottom, runs)
    figure.savefig(out, dpi=90)


def draw_runs(figure: SubFigure, runs: dict[str, list[OfflineRun]]) -> None:
    """The table of runs: settings with their types, and plain columns to sort and filter by."""
    figure.suptitle("Runs, sorted by tuned/available_rate_rfnet", x=0.01, ha="left", weight="bold")
    axes = figure.subplots()
    axes.axis("off")
    last = {name: starts[-1] for name, starts in runs.items()}
    order = sorted(last, key=lambda name: -last[name].summary.get("tuned/available_rate_rfnet", 0))
    cells = [[name, *(shown(v) for v in values(last[name]))] for name in order]
    table = axes.table(cells, colLabels=["Name", *SETTINGS, *SUMMARY], loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    table.auto_set_column_width(list(range(1 + len(SETTINGS) + len(SUMMARY))))
    table.scale(1, 1.5)
    for i, name in enumerate(order, start=1):
        table[i, 0].set_text_props(color=COLOURS[list(runs).index(name)], weight="bold")


def values(run: OfflineRun) -> list[Any]:
    """The cells of a run in the table of runs."""
    return [run.config.get(name) for name in SETTINGS] + [run.summary.get(name) for name in SUMMARY]


def shown(value: Any) -> str:
    """A number with three digits, anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw_curves(figure: SubFigure, runs: dict[str, list[OfflineRun]]) -> None:
    """Panels of metrics by step."""
    figure.suptitle("Charts, x axis: step", x=0.01, ha="left", weight="bold")
    for axes, metric in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for colour, (name, starts) in zip(COLOURS, runs.items(), strict=False):
            points = dict(point for start in starts for point in start.rows(metric))
            axes.plot(
                points.keys(),
                points.values(),
                marker="." if len(points) < 20 else "",
                color=colour,
                label=name,
            )
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_joined(figure: SubFigure, runs: dict[str, list[OfflineRun]]) -> None:
    """The first and the last run's table of pictures, joined: first the rows in which they differ."""
    first, last = list(runs)[0], list(runs)[-1]
    one, other = ({row["key"]: row for row in evaluation_table(runs[name][-1])} for name in (first, last))
    keys = sorted(one.keys() & other.keys(), key=lambda key: rank(one[key], other[key]))[:ROWS]
    title = f"evaluation of {first} and {last}, joined by key, by change_judge"
    figure.suptitle(f"{title}: {len(one)} rows, {ROWS} shown", x=0.01, ha="left", weight="bold")
    grid = figure.subplots(ROWS, 4, width_ratios=[1.2, 1, 1, 1])
    for axes, key in zip(grid, keys, strict=True):
        row = one[key]
        axes[0].axis("off")
        told = f"{row['product']}\nseed {row['seed']}\n{wrapped(row['prompt'])}"
        axes[0].text(0, 0.5, told, fontsize=8, va="center")
        picture(axes[1], row["base"], "base", row["base_judge"], row["available_base_judge"], "")
        for axis, name, found in ((axes[2], first, row), (axes[3], last, other[key])):
            shares = found["tuned_judge"], found["available_tuned_judge"], found["change_judge"]
            picture(axis, found["tuned"], f"tuned, {name}", *shares)


def evaluation_table(run: OfflineRun) -> list[dict[str, Any]]:
    """The rows of the last evaluation that a run has logged."""
    tables = [a for a in run.artifacts if a.type == "run_table" and a.name.endswith("-evaluation")]
    return read_table(tables[-1], "evaluation")


def rank(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, str]:
    """Rows in which the two runs differ come first, then what both changed, then the rest."""
    changes = one["change_judge"], other["change_judge"]
    return (0 if changes[0] != changes[1] else 1 if changes[0] != "same" else 2), one["key"]


def picture(axes: Axes, file: str, title: str, verdict: str, available: float, change: str) -> None:
    """A cell with a picture, and below it the judge's verdict."""
    axes.imshow(Image.open(file))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)
    told = f"{verdict}, p(available) {available:.2f}" + (f": {change}" if change else "")
    axes.set_xlabel(told, fontsize=8, color=GOOD if verdict == "available" else BAD)


def wrapped(text: str, width: int = 44) -> str:
    """The text in lines of about so many characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(line.strip() for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
