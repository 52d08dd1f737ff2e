"""What a run trains, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_objective(config: Mapping[str, Any]) -> str:
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
