"""Guardrails: a sudden fall of alignment or diversity means collapse, whatever their values mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from rfft.config.schema import Config, EvaluateConfig
from rfft.evaluation.store import values
from rfft.evaluation.tables import kind_of, table


def guardrails(base: Mapping[str, float], tuned: Mapping[str, float], settings: EvaluateConfig) -> list[str]:
    """Return warnings for what fell below its share of the base model's; both by the names of metrics."""
    warnings = []
    for name, least in zip(guarded(base), (settings.min_alignment, settings.min_diversity), strict=True):
        if name in base and name in tuned and tuned[name] < least * base[name]:
            reached = tuned[name] / base[name]
            warnings.append(
                f"{kind_of(name).title} fell to {reached:.0%} of the base model's, below the {least:.0%} "
                "allowed"
            )
    return warnings


def guarded(base: Mapping[str, float]) -> tuple[str, str]:
    """Return the metrics that must not fall.

    CLIP score stands for alignment where no probe reads that off the pictures.
    """
    return "alignment" if "alignment" in base else "clip_score", "diversity"


def show_result(console: Console, config: Config, summary: Mapping[str, Any]) -> None:
    """Print the table before/after, and what fell below a guardrail."""
    base, tuned = summary["base"], summary["tuned"]
    console.print(table(base, tuned, summary["change"]))
    for state in ("base", "tuned"):
        if count := summary[state]["not_finite"]:
            total = summary[state]["images"]
            console.print(
                f"warning: {count} of {total} pictures of the {state} model are not finite", style="red"
            )
    for warning in guardrails(values(base), values(tuned), config.evaluate):
        console.print(f"warning: {warning}", style="red")
