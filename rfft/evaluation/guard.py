"""Which checkpoint is the best, and reward hacking: RFNet likes what others like no better.

All of it is judged on the validation grid. The rule: the highest available rate of the monitor
(evaluate.monitor; of RFNet where there is none) among the checkpoints without a warning; of equal ones the
earliest. Metrics go by the names of summary.json; N products and prompts, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rfft.config.schema import EvaluateConfig
from rfft.evaluation.guardrails import guardrails
from rfft.evaluation.summary import Estimates, Products, mean_metrics

RFNET, MONITOR = "available_rate_rfnet", "available_rate_monitor"  # never the judge's
GAP, PREFERRED = "gap", "preferred"
STAND_INS = ("pickscore", "clip_score")  # for a monitor, where there is none: the first that is measured
EVEN = 0.5  # of PREFERRED, where nothing has changed


def chooses(settings: EvaluateConfig) -> str:
    """Return the metric whose highest value makes the best checkpoint."""
    return RFNET if settings.monitor is None else MONITOR


def guard(
    base: Mapping[str, float], tuned: Mapping[str, float], settings: EvaluateConfig
) -> tuple[list[str], float | None]:
    """Return what is wrong with a checkpoint, and what it is ranked by: None for one that cannot be the best.

    base, tuned: values on the validation grid, before training and of the checkpoint.
    """
    warnings = guardrails(base, tuned, settings)
    if (hacked := hacking(base, tuned, settings.max_gap)) is not None:
        warnings.append(hacked)
    return warnings, None if warnings else tuned.get(chooses(settings))


def hacking(base: Mapping[str, float], tuned: Mapping[str, float], margin: float) -> str | None:
    """Say so where RFNet's rate has gained more than the margin on the monitor's since before training.

    Without a monitor, where RFNet's rate has risen and its stand-in prefers the base model's pictures: the
    share that it likes better than these is more than the margin below one half.
    """
    if GAP in base and GAP in tuned and tuned[GAP] - base[GAP] > margin:
        return (
            f"reward hacking: RFNet's rate is {100 * tuned[GAP]:.1f} points above the monitor's, "
            f"{100 * base[GAP]:.1f} before training, and {100 * margin:g} more are allowed (evaluate.max_gap)"
        )
    if tuned.get(PREFERRED, EVEN) < EVEN - margin and tuned.get(RFNET, 0) > base.get(RFNET, 0):
        return (
            f"reward hacking: RFNet's rate rose, and {tuned[PREFERRED]:.0%} of the pictures score above the "
            f"base model's, where {EVEN - margin:.0%} is the least allowed (evaluate.max_gap)"
        )
    return None


def preference(scores: Mapping[str, Tensor], base: Mapping[str, Tensor], products: Products) -> Estimates:
    """Return the share of pictures whose score is above the base's of the same prompt and noise, ties half.

    scores, base: [N,S] by scorer, of which the first of STAND_INS counts; {} without any. A picture without
    a score, NaN, does not count.
    """
    name = next((name for name in STAND_INS if name in scores and name in base), None)
    if name is None:
        return {}
    better = scores[name] - base[name]
    won = (torch.sign(better).double() + 1) / 2
    return mean_metrics(PREFERRED, won.where(better.isfinite(), torch.nan), products)
