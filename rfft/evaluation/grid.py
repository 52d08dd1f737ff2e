"""The settings by which a grid is known again, so that the metrics of no other one take its place."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rfft import build
from rfft.config.load import flatten
from rfft.errors import UserError
from rfft.evaluation.evaluator import Evaluator
from rfft.evaluation.store import EVALUATION, read_json
from rfft.evaluation.summary import describe_intervals

PAINTED = (  # settings that decide what is painted
    *("products", "prompts", "count", "prompts_per_product", "seeds", "max_attempts"),
    *("quality_words", "negative_prompt", "only_accepted"),
)
MEASURED = (
    "judge",
    "monitor",
    "probe",
    "reference",
    "clip",
    "pickscore",
    "aesthetic",
    "fid",
    "fidelity",
)  # what measures it
ELSEWHERE = (
    *("rollout.steps", "rollout.guidance_scale", "trainer.mixed_precision", "reward.rfnet"),
    *("model.bundle", "model.controlnet", "model.dtype", "data.image_size", "data.image_scale"),
    *("data.keep_location", "data.white_to_alpha", "data.white_level", "data.canny_low", "data.canny_high"),
    "data.buckets",
)
ABSENT = (None, "none", False)  # values of a measure that was not taken: it may be added


def describe_grid(evaluator: Evaluator) -> dict[str, Any]:
    """Return the parts of evaluation.json that both states share: grid, intervals, cells."""
    config = evaluator.config
    settings = flatten(asdict(config)) | {
        "evaluate.products": build.evaluated_products(config),
        "evaluate.reference": build.reference_source(config),
    }
    if config.model.quantize != "none":
        settings["model.dtype"] += f" and {config.model.quantize}"
    names = [*(f"evaluate.{name}" for name in (*PAINTED, *MEASURED)), *ELSEWHERE]
    return {
        "grid": {name: settings[name] for name in names if name in settings},
        "intervals": describe_intervals(evaluator.products),
        "cells": evaluator.cells(),
    }


def refuse_another(run: Path, grid: dict[str, Any], checkpoint: int | None = None) -> None:
    """Raise a UserError where the folder has metrics of another grid, or of another checkpoint's weights.

    grid: of describe_grid(); a measure that the folder's evaluation did not take may be added to it.
    """
    known = read_json(run / EVALUATION)
    if not known:
        return
    elsewhere = "write what you ask for elsewhere, with --out FOLDER"
    for name, now in grid["grid"].items():
        before = known["grid"].get(name)
        addable = name.removeprefix("evaluate.") in MEASURED and before in ABSENT
        if before != now and not addable:
            raise UserError(f"{run} was evaluated with {name}={_show(before)}, not {_show(now)}: {elsewhere}")
    if known["cells"] != grid["cells"]:
        raise UserError(f"{run} was evaluated on products or prompts that have changed since: {elsewhere}")
    before = known.get("tuned", {}).get("checkpoint")
    if checkpoint is not None and before not in (None, checkpoint):
        raise UserError(f"{run} has the metrics of step {before}, not of step {checkpoint}: {elsewhere}")


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
