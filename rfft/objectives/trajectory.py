"""Training through the sampler: DRaFT-K (arXiv 2309.17400) and AlignProp, and DRTune (arXiv 2405.00760).

ReFL needs nothing of its own: it is the training step of step.py without guidance and regularizer
(objective.guidance_scale=1 objective.regularizer=none). Shapes as in step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rfft.diffusion.sampling import advance, cfg_eps, guide, rollout
from rfft.objectives.x0_hat import Judged, Objective, compare, judge, precision, predict
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
    return output(judged, judged.f_ac + judged.extra, torch.zeros_like(judged.f_ac), len(schedule))


def drtune_step(
    policy: Policy,
    reward: Reward,
    batch: Batch,
    schedule: Schedule,
    ks: Sequence[int],
    objective: Objective,
    backward: Callable[[Tensor], object],
) -> StepOutput:
    """One micro-batch of DRTune: the finished picture is judged, and its gradient reaches the steps ks.

    It takes the sampler's own way, eqs (1) and (2), and enters no denoiser by its input. What denoisers see
    is data, as in step.py, and so the regularizer means the same.
    """
    scale, regs = objective.guidance_scale, []
    with policy.merged():
        x = rollout(policy.denoiser, batch, schedule, scale, 0, ks[0])
    for k in range(ks[0], len(schedule)):
        seen = x.detach()
        if k in ks:
            torch.clear_autocast_cache()  # see step.py
            theta, reg = compare(policy, seen, k, batch, schedule, objective)
            eps = theta.eps
            regs.append(reg)
        else:
            with torch.no_grad(), policy.merged():
                eps = guide(*cfg_eps(policy.denoiser, seen, schedule.timesteps[k], batch), scale)
        x = advance(x, eps, k, batch, schedule)
    judged, reg = judge(policy, reward, x, batch, objective), torch.stack(regs).mean()
    backward((x * judged.slope).sum() + objective.beta * reg)
    loss = judged.f_ac + judged.extra + objective.beta * reg.detach()
    forwards = len(schedule) + (len(ks) if objective.regularizer != "none" else 0)
    return output(judged, loss, reg.detach(), forwards)


def output(judged: Judged, loss: Tensor, reg: Tensor, forwards: int) -> StepOutput:
    """Of one verdict for all trained steps: K = 1."""
    available = (judged.logits.argmax(-1) == 0).float().mean()
    logits = judged.logits[None]
    return StepOutput(loss, judged.f_ac, reg, available, logits, judged.images, forwards, judged.scalars)
