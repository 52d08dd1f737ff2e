"""What RFFT is compared with: DRaFT-K (arXiv 2309.17400) and AlignProp, which train through the sampler.

ReFL needs nothing of its own: it is the training step of step.py without guidance and regularizer
(objective.guidance_scale=1 objective.regularizer=none). Shapes as in step.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rfft.diffusion import advance, rollout
from rfft.step import Objective, judge, precision, predict
from rfft.types import Batch, Policy, Reward, Schedule, StepOutput


def draft_step(
    policy: Policy,
    reward: Reward,
    batch: Batch,
    schedule: Schedule,
    last: int,
    objective: Objective,
    backward: Callable[[Tensor], object],
) -> StepOutput:
    """One micro-batch of DRaFT-K: the gradient goes through the last K = `last` steps; no regularizer."""
    scale, start = objective.guidance_scale, len(schedule) - last
    with policy.merged():
        x = rollout(policy.denoiser, batch, schedule, scale, 0, start)
    torch.clear_autocast_cache()  # see step.py
    for k in range(start, len(schedule)):
        with precision(objective, x):
            theta = predict(policy.denoiser, x, k, batch, schedule, scale)
        x = advance(x, theta.eps, k, batch, schedule)
    judged = judge(policy, reward, x, batch, objective)
    backward((x * judged.slope).sum())
    available = (judged.logits.argmax(-1) == 0).float().mean()
    loss, none = judged.f_ac + judged.extra, torch.zeros_like(judged.f_ac)
    logits = judged.logits[None]
    return StepOutput(
        loss, judged.f_ac, none, available, logits, judged.images, len(schedule), judged.scalars
    )
