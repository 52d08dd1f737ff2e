"""DiffusionNFT (arXiv 2509.16117): verdicts on finished pictures, learnt on the forward process.

No log-probability and no gradient of the rewards: finished pictures are noised again, and the prediction is
drawn to good ones and pushed off bad ones. Shapes: N pictures, C channels, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rfft.diffusion.losses import nft
from rfft.diffusion.noise import more_noise
from rfft.errors import require
from rfft.objectives.base import Backward, ObjectiveSettings, Work, predict, predict_regularized
from rfft.objectives.verdicts import (
    FORWARD,
    advantages,
    check_group,
    grouped,
    judge,
    learned,
    noise_again,
    outside,
    paint_group,
)
from rfft.types import Batch, Policy, Reward, Schedule, StepOutput


class DiffusionNFT:
    """Negative-aware fine-tuning on the forward process."""

    needs_gradient = False

    def __init__(
        self,
        settings: ObjectiveSettings,
        group: int = 4,
        mix: float = 1.0,
        old: Literal["policy", "reference"] = "policy",
    ) -> None:
        """group: pictures for each product and prompt; mix: the paper's beta.

        old: what the implicit policies are mixed with, the model as it is (online, no forward more) or the
        reference, which bounds how far the model can go, for a forward of it at each trained step.
        """
        require(mix > 0, f"objective.options.mix={mix} must be above 0")
        require(old in ("policy", "reference"), f"objective.options.old={old!r}: it is policy or reference")
        self.settings, self.mix, self.old = settings, mix, old
        self.group = check_group(group, least=1)

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        """Return the forwards: the whole rollout, and one with gradient at each noise level."""
        trained = len(ks)
        references = trained * ((self.settings.regularizer is not None) + (self.old == "reference"))
        work = Work(steps, trained, references, backwards=trained, graphs=1)
        return replace(work, painted=self.group, learned=self.group, verdicts=self.group)

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        """Paint and judge a group for each sample, then learn at the noise levels of the steps ks."""
        settings, group = self.settings, grouped(batch, self.group)
        x0 = paint_group(policy, group, schedule, settings)
        judged = judge(policy, reward, x0, group, settings.decode_batch)
        # How good a picture is, from 0 to 1: half for one that is like its group.
        r = 0.5 + 0.5 * advantages(judged.losses, self.group).clamp(-1, 1)
        losses, regs = [], []
        for k in ks:
            x = noise_again(x0, more_noise(group.noise, FORWARD + k), group, k, schedule)
            theta, reg = predict_regularized(policy, x, k, group, schedule, settings)
            old = self._old(policy, x, k, group, schedule, theta.guided.x0)
            loss = nft(theta.guided.x0, old, x0, r, self.mix, outside(group)).mean()
            backward((loss + settings.beta * reg.loss) / len(ks))
            losses.append(loss.detach())
            regs.append(reg)
        return learned(judged, losses, regs, settings.beta, self.work(len(schedule), ks))

    @torch.no_grad()
    def _old(
        self, policy: Policy, x: Tensor, k: int, batch: Batch, schedule: Schedule, own: Tensor
    ) -> Tensor:
        """Return the old policy's x0_hat at x; `own` is the model's."""
        if self.old == "policy":
            return own.detach()
        with policy.reference():
            scale = self.settings.guidance_scale
            return predict(policy.denoiser, x, k, batch, schedule, scale).guided.x0
