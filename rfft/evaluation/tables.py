"""Metrics as people read them: names, directions, rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rfft.evaluation.verdicts import NETWORKS
from rfft.types import COARSE_LABELS, LABELS

State = Mapping[str, Any]
Metric = Mapping[str, float]  # value, and low and high where there is an interval


@dataclass(frozen=True)
class MetricKind:
    """How a metric is shown, and which direction is better."""

    title: str
    digits: int | None = None  # None: a share, shown in percent
    higher_is_better: bool = True

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    def text(self, value: float, plus: str = "", unit: str = " %") -> str:
        """Return a value as it is shown; `unit`: of a share."""
        if self.digits is None:
            return f"{100 * value:{plus}.1f}{unit}"
        return f"{value:{plus}.{self.digits}f}"

    def range(self, metric: Metric, plus: str = "") -> str:
        """Return the interval in brackets, or nothing where there is none."""
        if "low" not in metric:
            return ""
        return f" ({self.text(metric['low'], plus, '')} to {self.text(metric['high'], plus, '')})"


NAMED = {
    "gap": MetricKind("RFNet less monitor", higher_is_better=False),
    "preferred": MetricKind("preferred to the base's"),
    "attempts": MetricKind("attempts until accepted", 2, higher_is_better=False),
    "alignment": MetricKind("alignment"),
    "diversity": MetricKind("diversity", 3),
    "vendi": MetricKind("Vendi score", 2),
    "colourfulness": MetricKind("colourfulness", 1),
    "kid": MetricKind("KID to held-out pictures", 4, higher_is_better=False),
    "fid": MetricKind("FID to held-out pictures", 1, higher_is_better=False),
    "clip_score": MetricKind("CLIP score", 2),
    "pickscore": MetricKind("PickScore", 2),
    "aesthetic": MetricKind("aesthetic score", 2),
    "product_psnr": MetricKind("unpasted product, PSNR in dB", 1),
    "product_ssim": MetricKind("unpasted product, SSIM", 3),
}
FAULTS = (*LABELS[1:], COARSE_LABELS[1])


def kind_of(name: str) -> MetricKind:
    """Return how the metric of this name in summary.json is shown."""
    if name in NAMED:
        return NAMED[name]
    stem, _, last = name.rpartition("_")
    if stem in FAULTS:
        return MetricKind(f"{stem.replace('_', ' ')} ({NETWORKS[last]})", higher_is_better=False)
    if stem == "available_rate":
        return MetricKind(f"available ({NETWORKS[last]})")
    if stem == "success_at":
        return MetricKind(f"accepted within {last} attempts")
    return MetricKind(name.replace("alignment_", "alignment: ").replace("_", " "))


@dataclass(frozen=True)
class MetricRow:
    """A metric of one or both states, as people read it."""

    name: str
    kind: MetricKind
    base: str
    tuned: str
    change: str  # with its interval
    better: bool | None  # None: the interval of the change has zero in it, or there is none
    short: tuple[str, str, str] = ("", "", "")  # for a terminal: base, tuned and change without units


def rows(
    base: State, tuned: State | None = None, change: Mapping[str, Metric] | None = None
) -> list[MetricRow]:
    """Return the metrics that both states have; those of the base model, if it was evaluated alone."""
    names = [name for name in shown_names(base) if tuned is None or name in tuned["metrics"]]
    states = [base] if tuned is None else [base, tuned]
    found = [
        _row(name, [state["metrics"][name] for state in states], (change or {}).get(name)) for name in names
    ]
    counts = [state["not_finite"] for state in states]
    return [*found, _not_finite(counts)] if any(counts) else found


def shown_names(state: State) -> list[str]:
    """Return the metrics of a state in the table's order; of the successes, the one after all attempts."""
    successes = [name for name in state["metrics"] if name.startswith("success_at_")]
    hidden = successes[:-1] if len(successes) > 1 else successes
    return [name for name in state["metrics"] if name not in hidden]


def _row(name: str, metrics: list[Metric], change: Metric | None) -> MetricRow:
    """metrics: the base model's and, if there is one, the tuned one's."""
    kind = kind_of(name)
    plain = [kind.text(metric["value"]) for metric in metrics]
    full = [text + kind.range(metric) for text, metric in zip(plain, metrics, strict=True)]
    if len(metrics) == 1:
        return MetricRow(name, kind, full[0], "", "", None, (full[0], "", ""))
    change = change or {"value": metrics[1]["value"] - metrics[0]["value"]}
    better = None
    if "low" in change and (change["low"] > 0 or change["high"] < 0):
        better = (change["value"] > 0) == kind.higher_is_better
    moved, short = (
        kind.text(change["value"], "+", unit) + kind.range(change, "+") for unit in (" points", "")
    )
    return MetricRow(name, kind, full[0], full[1], moved, better, (plain[0], plain[1], short))


def _not_finite(counts: list[int]) -> MetricRow:
    kind = MetricKind("pictures not finite", 0, higher_is_better=False)
    base, tuned = (*map(str, counts), "")[:2]
    change = f"{counts[1] - counts[0]:+}" if len(counts) > 1 else ""
    return MetricRow("not_finite", kind, base, tuned, change, None, (base, tuned, change))


def table(base: State, tuned: State | None = None, change: Mapping[str, Metric] | None = None) -> Table:
    """Return before and after, or the base model alone, for a terminal of 80 columns."""
    columns = ["base (95 % interval)"] if tuned is None else ["base", "tuned", "change (95 % interval)"]
    notes = ["↑ more is better, ↓ less is better; intervals: products resampled"]
    if tuned is not None:
        notes.append("; change: paired, of shares in points")
    notes.append(f"; {painted(base)}" if painted(base) else "")
    title = "the base model" if tuned is None else "before and after"
    narrow: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    shown = Table("", *columns, title=title, caption="".join(notes), **narrow)
    for column in shown.columns[1:]:
        column.justify, column.no_wrap = "right", True
    styles = {True: "green", False: "red", None: ""}
    for row in rows(base, tuned, change):
        before, after, changed = row.short
        cells = (before, after, Text(changed, styles[row.better]))
        shown.add_row(f"{row.kind.title} {row.kind.arrow}", *cells[: len(columns)])
    return shown


def painted(state: State) -> str:
    """Say how the pictures behind a state's metrics differ from a model's plain first ones; "" if not."""
    parts = []
    if state.get("only_accepted"):
        parts.append(
            f"what RFNet refused was painted anew (recurrent generation, {state['max_attempts']} attempts at "
            "most)"
        )
    if words := state.get("quality_words"):
        parts.append(f"“{words}” was added to every prompt")
    if (negative := state.get("negative_prompt")) is not None:
        parts.append(f"“{negative}” was every negative prompt")
    return "; ".join(parts)
