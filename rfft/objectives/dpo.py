"""Diffusion-DPO (arXiv 2311.12908) on pairs that the rewards make: the best and the worst picture of a group.

Optionally on the background alone, by the product's mask, as InpaintDPO (arXiv 2512.15644) does.
Shapes: B pairs, N pictures, C channels, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rfft.diffusion.losses import dpo, masked_mean
from rfft.diffusion.noise import more_noise
from rfft.errors import require
from rfft.objectives.base import Backward, ObjectiveSettings, Work, autocast_for, predict, predict_regularized
from rfft.objectives.verdicts import FORWARD, check_group, grouped, judge, noise_again, outside, paint_group
from rfft.types import Batch, Policy, Reward, Schedule, StepOutput


class DiffusionDPO:
    """Direct preference optimisation of the noise error, against the reference's."""

    needs_gradient = False

    def __init__(
        self, settings: ObjectiveSettings, group: int = 4, strength: float = 2000.0, masked: bool = True
    ) -> None:
        """group: pictures of which best and worst are a pair; strength: the paper's beta T; masked: without
        the product's latents. Raises UserError for a regularizer: the loss is held to the reference as it is.
        """
        require(
            settings.regularizer is None,
            "objective.use=dpo is held to its reference by itself: set objective.regularizer=none",
        )
        require(strength > 0, f"objective.options.strength={strength} must be above 0")
        self.settings, self.strength, self.masked = settings, strength, masked
        self.group = check_group(group, least=2)

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        """Return the forwards: the group's whole rollout, then pairs of the model and of the reference."""
        trained = len(ks)
        work = Work(steps, trained, trained, backwards=trained, graphs=1)
        return replace(work, painted=self.group, learned=2, verdicts=self.group)

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        """Paint and judge a group for each sample, then learn from the pairs at the noise levels of ks."""
        settings, group = self.settings, grouped(batch, self.group)
        x0 = paint_group(policy, group, schedule, settings)
        judged = judge(policy, reward, x0, group, settings.decode_batch)
        rows, prefers = pairs(judged.losses, self.group)
        # The product's latents are noised alike in both, too, or they would tell the pictures apart.
        both = replace(group.index(rows), noise=torch.cat([batch.noise, batch.noise]))
        losses, right = [], []
        for k in ks:
            eps = more_noise(batch.noise, FORWARD + k)
            won, lost, won_ref, lost_ref = self._errors(
                policy, x0[rows], torch.cat([eps, eps]), both, k, schedule
            )
            # A group whose pictures are all alike says nothing.
            loss = (prefers * dpo(won, lost, won_ref, lost_ref, self.strength)).mean()
            backward(loss / len(ks))
            losses.append(loss.detach())
            right.append(((won - won_ref) < (lost - lost_ref)).float().mean())
        loss = torch.stack(losses).mean()
        forwards = self.work(len(schedule), ks).forwards
        scalars = judged.scalars | {
            "reward_loss": judged.losses.mean(),
            "preferred": torch.stack(right)
            .mean()
            .detach(),  # share of pairs that the model orders as they are
        }
        return StepOutput(loss, loss.new_zeros(()), judged.images, len(group), forwards, scalars)

    def _errors(
        self, policy: Policy, x0: Tensor, eps: Tensor, both: Batch, k: int, schedule: Schedule
    ) -> list[Tensor]:
        """Return mean squared noise errors [B]: the model's of won and lost, then the reference's."""
        settings = self.settings
        x = noise_again(x0, eps, both, k, schedule)
        theta, _ = predict_regularized(policy, x, k, both, schedule, settings)
        with torch.no_grad(), policy.reference(), autocast_for(settings.precision, x.device):
            ref = predict(policy.denoiser, x, k, both, schedule, settings.guidance_scale)
        free = outside(both) if self.masked else torch.ones_like(x)
        found = [masked_mean((said.guided.eps - eps).square(), free).chunk(2) for said in (theta, ref)]
        return [error for pair in found for error in pair]


def pairs(losses: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return rows [2B] of each group's best picture, then of its worst; and 1 where they differ [B]."""
    table = losses.reshape(-1, group)
    first = group * torch.arange(len(table), device=losses.device)
    best, worst = table.argmin(1), table.argmax(1)
    prefers = (table.amin(1) < table.amax(1)).to(losses.dtype)
    return torch.cat([first + best, first + worst]), prefers
