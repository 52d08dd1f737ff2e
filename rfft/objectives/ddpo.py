"""DDPO (arXiv 2305.13301): the policy gradient of a stochastic sampler; rewards need no gradient.

Each denoising step is an action of known log-probability: DDIM with eta = 1 draws x_next from a Gaussian.
Shapes: N pictures, C channels, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rfft.diffusion.losses import masked_mean, ppo
from rfft.diffusion.noise import more_noise
from rfft.diffusion.sampling import ancestral, inpaint_next, log_probability
from rfft.errors import require
from rfft.objectives.base import Backward, ObjectiveSettings, Work, predict, predict_regularized
from rfft.objectives.verdicts import advantages, check_group, grouped, judge, learned, outside
from rfft.types import Batch, Policy, Reward, Schedule, StepOutput


class DDPO:
    """PPO on the sampler's log-probabilities, with advantages within a group of pictures."""

    needs_gradient = False

    def __init__(
        self, settings: ObjectiveSettings, group: int = 4, clip: float = 1e-4, most: float = 5.0
    ) -> None:
        """group: pictures for each product and prompt; clip: PPO's; most: largest size of an advantage."""
        require(clip > 0 and most > 0, "objective.options: clip and most must be above 0")
        self.settings, self.clip, self.most = settings, clip, most
        self.group = check_group(group, least=1)

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        """Return the forwards: the whole rollout, and the trained steps once more."""
        trained = len(ks)
        references = trained if self.settings.regularizer is not None else 0
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
        """Paint and judge a group for each sample, then reinforce the steps ks of good pictures.

        Each rollout is used for one pass, at the weights that it was painted with: PPO's ratio is 1 then, its
        gradient the policy gradient itself.
        """
        settings, group = self.settings, grouped(batch, self.group)
        last = int((schedule.s_next > 0).nonzero().max())  # a step to s = 0 draws nothing
        path = _stochastic_rollout(policy, group, schedule, settings)
        judged = judge(policy, reward, path[-1], group, settings.decode_batch)
        advantage = advantages(judged.losses, self.group).clamp(-self.most, self.most)
        losses, regs, free = [], [], outside(group)
        for k in ks:
            k = min(k, last)
            theta, reg = predict_regularized(policy, path[k], k, group, schedule, settings)
            mean, std = ancestral(theta.guided, k, schedule)
            log_p = masked_mean(log_probability(path[k + 1], mean, std), free)
            loss = ppo(log_p, log_p.detach(), advantage, self.clip).mean()
            backward((loss + settings.beta * reg.loss) / len(ks))
            losses.append(loss.detach())
            regs.append(reg)
        return learned(judged, losses, regs, settings.beta, self.work(len(schedule), ks))


@torch.no_grad()
def _stochastic_rollout(
    policy: Policy, batch: Batch, schedule: Schedule, settings: ObjectiveSettings
) -> list[Tensor]:
    """Return x at all steps and the finished one, [N,C,h,w] each, by DDIM with eta = 1.

    Inside the product it is not what was drawn; that part counts nowhere.
    """
    path = [batch.noise]
    with policy.rolling() as denoiser:
        for k in range(len(schedule)):
            theta = predict(denoiser, path[-1], k, batch, schedule, settings.guidance_scale, False)
            mean, std = ancestral(theta.guided, k, schedule)
            drawn = mean + std * more_noise(batch.noise, k)
            path.append(inpaint_next(drawn, k, batch, schedule))
    return path
