"""What was done to a model, under the names that papers have for it: read off a run's resolved config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rfft.config.presets import RENAMED

REGULARIZERS = {"kl": "KL", "cc": "CC", "norm": "norm"}
NAMES = {
    "rfft": "RFFT",
    "refl": "RFFT",
    "draft-lv": "DRaFT-LV",
    "drtune": "DRTune",
    "flowbp-sparse": "FlowBP-Sparse",
    "flowbp-bridge": "FlowBP-Bridge",
    "leapalign": "LeapAlign",
    "ddpo": "DDPO",
    "nft": "DiffusionNFT",
    "dpo": "Diffusion-DPO",
}
REFL = "ReFL"  # x0_hat of one late step, without guidance and regularizer


def method_of(config: Mapping[str, Any], state: str, metrics: Mapping[str, Any]) -> str:
    """Name what was done to the base model (`state` base or tuned), and to its prompts and pictures.

    `metrics` are those of the state's evaluation, which know prompt engineering and recurrent generation.
    """
    done = [training_method(config)] if state == "tuned" else []
    if "quality_words" in metrics or "negative_prompt" in metrics:
        done.append("prompt engineering")
    if metrics.get("only_accepted"):
        done = [*(done or ["base"]), "recurrent"]
    return ", ".join(done or ["base"])


def training_method(config: Mapping[str, Any]) -> str:
    """Name the objective, its regularizer with beta, and guidance where training had none.

    RFFT is the paper's objective on x0_hat; without guidance and regularizer it is ReFL.
    """
    use, regularizer = objective_of(config), config["objective"]["regularizer"]
    unguided = _guidance_scale(config) == 1
    if use in ("rfft", "refl") and regularizer == "none":
        return REFL if unguided else "RFFT, no regularizer"
    names = NAMES | {"draft-k": f"DRaFT-{config['rollout']['grad_steps']}"}
    parts = [names.get(use, use.rpartition(":")[2])]
    if regularizer != "none":
        named = REGULARIZERS.get(regularizer, regularizer.rpartition(":")[2])
        parts.append(f"{named}, beta {_beta(config['objective'])}")
    return ", ".join([*parts, "no guidance"] if unguided else parts)


def _beta(objective: Mapping[str, Any]) -> str:
    beta = objective["beta"]
    return f"auto at drift {objective['drift']:g}" if beta == "auto" else f"{beta:g}"


def objective_of(config: Mapping[str, Any]) -> str:
    """The registered name or the dotted path of the objective in a resolved config."""
    use = str(config["objective"]["use"])
    return RENAMED.get(use, use)


def _guidance_scale(config: Mapping[str, Any]) -> float | None:
    own = config["objective"].get("guidance_scale")
    return config.get("rollout", {}).get("guidance_scale") if own is None else own
