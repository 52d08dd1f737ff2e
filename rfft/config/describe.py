"""What a run trains, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_objective(config: Mapping[str, Any]) -> str:
    """Return F_total of a resolved config, and where its gradient goes, as one line."""
    settings, terms = config["objective"], [_term(term) for term in config["reward"]["terms"]]
    if settings["regularizer"] != "none":
        known = {"cc": "L_CC", "kl": "L_KL"}
        terms.append(f"{settings['beta']} * {known.get(settings['regularizer'], settings['regularizer'])}")
    steps = config["rollout"]["grad_steps"]
    where = {
        "x0_hat": "",
        "draft": f", through the last {steps} steps (DRaFT-K)",
        "drtune": f", from the finished picture to {steps} of its steps (DRTune)",
    }
    return " + ".join(terms) + where.get(settings["use"], f", by {settings['use']}")


def _term(term: Mapping[str, Any]) -> str:
    name = "F_AC" if term["use"] == "rfnet" else term["use"]
    return name if term["use"] == "rfnet" and term["weight"] == 1 else f"{term['weight']} * {name}"
