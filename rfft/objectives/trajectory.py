"""Training through the sampler: the rewards see the finished picture, not x0_hat.

DRaFT-K (arXiv 2309.17400, AlignProp 2310.03739) and DRTune (arXiv 2405.00760). ReFL needs nothing of its own:
it is x0_hat without guidance and regularizer (objective.guidance_scale=1 objective.regularizer=none).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rfft.diffusion.sampling import advance
from rfft.errors import UserError
from rfft.objectives.base import (
    Backward,
    ObjectiveSettings,
    RewardGradient,
    Work,
    autocast_for,
    predict,
    predict_regularized,
    reward_gradient,
    roll_out,
)
from rfft.types import Batch, Denoised, NoiseLevel, Policy, Reward, Schedule, StepOutput


class DraftK:
    """DRaFT-K: the gradient goes through the last K steps, whole; there is no regularizer."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        if settings.regularizer is not None:
            raise UserError("objective.use=draft has no regularizer: set objective.regularizer=none")
        self.settings = settings

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        trained = len(ks)
        return Work(steps - trained, trained, 0, backwards=1, graphs=trained, chained=True)

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        """Train through the last K steps, as many as there are ks; which these are does not matter."""
        settings, start = self.settings, len(schedule) - len(ks)
        x = roll_out(policy, batch, schedule, settings, 0, start, batch.noise)
        torch.clear_autocast_cache()  # see base.predict_regularized
        for k in range(start, len(schedule)):
            with autocast_for(settings.precision, x.device):
                theta = predict(policy.denoiser, x, k, batch, schedule, settings.guidance_scale)
            x = advance(theta.guided, k, batch, schedule)
        judged = reward_gradient(policy, reward, x, batch, settings.decode_batch)
        backward((x * judged.grad).sum())
        return _output(judged, judged.loss, torch.zeros_like(judged.loss), self.work(len(schedule), ks))


class DRTune:
    """DRTune: the finished picture's gradient reaches the steps ks by the sampler's own way, eqs (1) and (2).

    It enters no denoiser by its input. What denoisers see is data, as for x0_hat, and so the regularizer
    means the same.
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        trained = len(ks)
        references = trained if self.settings.regularizer is not None else 0
        return Work(
            steps - trained, trained, references, backwards=1, graphs=trained, merges_beside_graphs=True
        )

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        """Train at the steps ks of one whole rollout, by one backward pass."""
        settings, regs = self.settings, []
        x = roll_out(policy, batch, schedule, settings, 0, ks[0], batch.noise)
        for k in range(ks[0], len(schedule)):
            seen = x.detach()
            if k in ks:
                theta, reg = predict_regularized(policy, seen, k, batch, schedule, settings)
                regs.append(reg)
            else:
                with torch.no_grad(), policy.merged():
                    theta = predict(policy.denoiser, seen, k, batch, schedule, settings.guidance_scale)
            x = advance(_seen_from(x, theta.guided, schedule.level(k)), k, batch, schedule)
        judged = reward_gradient(policy, reward, x, batch, settings.decode_batch)
        reg = torch.stack(regs).mean()
        backward((x * judged.grad).sum() + settings.beta * reg)
        loss = judged.loss + settings.beta * reg.detach()
        return _output(judged, loss, reg.detach(), self.work(len(schedule), ks))


def _seen_from(x: Tensor, guided: Denoised, level: NoiseLevel) -> Denoised:
    """Return the pair with x0_hat = (x - s eps_hat) / a, so that the gradient goes on to x."""
    if not x.requires_grad:  # as before the first trained step, where a flow's a may be 0
        return guided
    return Denoised((x - level.s * guided.eps) / level.a, guided.eps)


def _output(judged: RewardGradient, loss: Tensor, reg: Tensor, work: Work) -> StepOutput:
    """Return the output of a step that has one verdict for all its trained steps."""
    return StepOutput(loss, reg, judged.images, len(judged.images), work.forwards, judged.scalars)
