"""What a run trains, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rfft.config.presets import RENAMED


def describe_objective(config: Mapping[str, Any]) -> str:
    """Return F_total of a resolved config, and where its gradient goes, as one line."""
    settings, terms = config["objective"], [_term(term) for term in config["reward"]["terms"]]
    if settings["regularizer"] != "none":
        terms.append(_regularizer(settings))
    steps, use = config["rollout"]["grad_steps"], RENAMED.get(settings["use"], settings["use"])
    return " + ".join(terms) + _where(steps).get(use, f", by {use}")


def _regularizer(settings: Mapping[str, Any]) -> str:
    known = {"cc": "L_CC", "kl": "L_KL", "norm": "L_norm"}
    name, beta = known.get(settings["regularizer"], settings["regularizer"]), settings["beta"]
    name = f"({name})" if "+" in name else name
    return f"beta * {name} (drift {settings['drift']:g})" if beta == "auto" else f"{beta} * {name}"


def _where(steps: int) -> dict[str, str]:
    several = f"to {steps} of its steps"
    return {
        "rfft": "",
        "refl": " (ReFL)",
        "draft-k": f", through the last {steps} steps (DRaFT-K)",
        "draft-lv": ", through the last step, with noised copies (DRaFT-LV)",
        "drtune": f", from the finished picture {several} (DRTune)",
        "flowbp-sparse": f", from the finished picture {several} (FlowBP-Sparse)",
        "flowbp-bridge": f", from the finished picture {several}, coupled at one (FlowBP-Bridge)",
        "leapalign": f", from the finished picture by {steps} leaps (LeapAlign)",
        "ddpo": f", by the policy gradient of {steps} of its steps (DDPO)",
        "nft": f", at {steps} noise levels of finished pictures (DiffusionNFT)",
        "dpo": f", by pairs of finished pictures at {steps} noise levels (Diffusion-DPO)",
    }


def _term(term: Mapping[str, Any]) -> str:
    name = "F_AC" if term["use"] == "rfnet" else term["use"]
    return name if term["use"] == "rfnet" and term["weight"] == 1 else f"{term['weight']} * {name}"
