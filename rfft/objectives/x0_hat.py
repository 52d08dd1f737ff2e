"""THE TRAINING STEP: roll out to a late step, judge the picture foreseen there, push the verdict back.

Shapes: B batch, C channels, h w latent. Equation numbers are those of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rfft.diffusion.sampling import advance
from rfft.objectives.base import (
    Backward,
    ObjectiveSettings,
    Work,
    gradient_norms,
    predict_regularized,
    reward_gradient,
    roll_out,
)
from rfft.types import Batch, Denoised, Policy, Reward, Schedule, StepOutput


class X0Hat:
    """The paper's objective (arXiv 2408.00418): the rewards see x0_hat at the trained steps."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        trained = len(ks)
        references = trained if self.settings.regularizer is not None else 0
        return Work(max(ks) + 1 - trained, trained, references, backwards=trained, graphs=1)

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        """Train at the steps ks of one rollout; their gradients are averaged.

        Each k costs a forward with gradient, a reference forward and a backward. The forward with gradient is
        also the rollout's own step there; what lies behind the last k is never computed.
        """
        settings, per_k = self.settings, {}
        regs, losses, scalars = [], [], []
        x, position = batch.noise, 0
        for k in ks:
            x = roll_out(policy, batch, schedule, settings, position, k, x)
            theta, reg = predict_regularized(policy, x, k, batch, schedule, settings)
            judged = reward_gradient(policy, reward, theta.guided.x0, batch, settings.decode_batch)
            norms = gradient_norms(theta, reg, judged.grad, schedule.level(k), settings)
            # Its gradient is that of F_total, and the decoder's activations are gone by now.
            backward(((theta.guided.x0 * judged.grad).sum() + settings.beta * reg) / len(ks))

            regs.append(reg.detach())
            named = {} if settings.regularizer is None else {settings.regularizer.name: regs[-1]}
            losses.append(judged.loss + settings.beta * regs[-1])
            scalars.append(judged.scalars)
            per_k[k] = {"reward": judged.loss} | named | norms
            x = advance(Denoised(*(part.detach() for part in theta.guided)), k, batch, schedule)
            position = k + 1

        return StepOutput(
            loss=torch.stack(losses).mean(0),
            reg=torch.stack(regs).mean(0),
            images=judged.images,
            pictures=len(batch) * len(ks),
            forwards=self.work(len(schedule), ks).forwards,
            scalars={name: torch.stack([row[name] for row in scalars]).mean(0) for name in judged.scalars},
            per_k=per_k,
        )
