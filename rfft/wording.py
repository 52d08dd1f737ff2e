"""What a run trained and what an evaluation painted, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def objective(config: Mapping[str, Any]) -> str:
    """F_total of a resolved config, and where its gradient goes."""
    settings, terms = config["objective"], ["F_AC"]
    terms += [f"{extra['weight']} * {extra['use']}" for extra in config["reward"]["extra"]]
    if settings["regularizer"] != "none":
        terms.append(f"{settings['beta']} * L_{settings['regularizer'].upper()}")
    steps = config["rollout"]["grad_steps"]
    through = {
        "x0_hat": "",
        "draft": f", through the last {steps} steps (DRaFT-K)",
        "drtune": f", from the finished picture to {steps} of its steps (DRTune)",
    }
    return " + ".join(terms) + through[settings["through"]]


def painted(figures: Mapping[str, Any]) -> str:
    """How the pictures behind an evaluation's figures differ from a model's plain first ones; "" if not."""
    parts = []
    if figures.get("only_accepted"):
        attempts = figures["max_attempts"]
        parts.append(
            f"what RFNet refused was painted anew (recurrent generation, {attempts} attempts at most)"
        )
    if words := figures.get("quality_words"):
        parts.append(f"“{words}” was added to every prompt")
    if (negative := figures.get("negative_prompt")) is not None:
        parts.append(f"“{negative}” was every negative prompt")
    return "; ".join(parts)
