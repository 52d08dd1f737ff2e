"""What objectives without a gradient of the rewards are made of: groups of pictures, and verdicts on them.

Shapes: B batch, G pictures for each product and prompt (a group), N = B G pictures, C channels, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rfft.diffusion.noise import more_noise
from rfft.diffusion.sampling import add_noise, inpaint
from rfft.errors import require
from rfft.objectives.base import ObjectiveSettings, Work, means, render, roll_out
from rfft.objectives.regularizers import Regularized
from rfft.types import Batch, Policy, Reward, Schedule, StepOutput

GROUP, FORWARD = 10_000, 20_000  # numbers of more_noise(), apart from those of the sampler's steps


@dataclass
class Judged:
    """Finished pictures and what the rewards say of them; scalars are means."""

    losses: Tensor  # [N]
    images: Tensor  # [N,3,H,W]
    scalars: dict[str, Tensor]


def grouped(batch: Batch, group: int) -> Batch:
    """Return each sample `group` times in a row, each with noise of its own, the first with the sample's."""
    noises = [batch.noise, *(more_noise(batch.noise, GROUP + i) for i in range(1, group))]
    repeated = batch.index(torch.arange(len(batch), device=batch.noise.device).repeat_interleave(group))
    return replace(repeated, noise=torch.stack(noises, dim=1).flatten(0, 1))


@torch.no_grad()
def paint_group(policy: Policy, batch: Batch, schedule: Schedule, settings: ObjectiveSettings) -> Tensor:
    """Return the finished latents [N,C,h,w] of the sampler."""
    return roll_out(policy, batch, schedule, settings, 0, len(schedule), batch.noise)


@torch.no_grad()
def judge(policy: Policy, reward: Reward, x0: Tensor, batch: Batch, decode_batch: int | None) -> Judged:
    """Decode finished latents with the product in them, and ask the rewards, in parts of `decode_batch`."""
    parts, total = [], len(batch)
    for rows in torch.arange(total, device=x0.device).split(decode_batch or total):
        products = batch.index(rows)
        image = render(policy, x0[rows], products, preview=True)
        losses, scalars = reward(image, products)
        share = len(rows) / total
        parts.append(
            (losses.float(), image, {name: share * value.float() for name, value in scalars.items()})
        )
    sums = {name: torch.stack([part[2][name] for part in parts]).sum(0) for name in parts[0][2]}
    return Judged(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), sums)


def advantages(losses: Tensor, group: int) -> Tensor:
    """Return how much better each picture [N] is than its group, in the group's standard deviations.

    0 where all of a group are alike. A group of one is compared with the whole micro-batch.
    """
    rows = -losses.reshape(-1, group if group > 1 else len(losses))
    deviation = rows.std(dim=1, correction=0, keepdim=True)
    return ((rows - rows.mean(1, keepdim=True)) / (deviation + 1e-6)).flatten()


def learned(
    judged: Judged, losses: Sequence[Tensor], regs: Sequence[Regularized], beta: float, work: Work
) -> StepOutput:
    """Return the output of a step that learned from `judged` at some noise levels, a loss and a reg each."""
    reg = torch.stack([regularized.loss.detach() for regularized in regs]).mean()
    scalars = {"reward_loss": judged.losses.mean()} | means([regularized.scalars for regularized in regs])
    loss = torch.stack(list(losses)).mean() + beta * reg
    return StepOutput(loss, reg, judged.images, len(judged.losses), work.forwards, judged.scalars | scalars)


def noise_again(x0: Tensor, eps: Tensor, batch: Batch, k: int, schedule: Schedule) -> Tensor:
    """Return x at step k of the forward process from x0, with the product in it as the sampler has it."""
    a, s = schedule.a[k], schedule.s[k]
    return inpaint(add_noise(x0, eps, a, s), add_noise(batch.x_o, batch.noise, a, s), batch.mask)


def outside(batch: Batch) -> Tensor:
    """Return 1 where a latent element [N,C,h,w] is the generator's own, 0 inside the product."""
    return (1 - batch.mask).expand_as(batch.noise)


def check_group(group: int, least: int) -> int:
    """Return objective.options.group; raises UserError if it is no number of pictures."""
    fits = isinstance(group, int) and group >= least
    require(fits, f"objective.options.group={group}: pictures for each product and prompt, {least} at least")
    return group
