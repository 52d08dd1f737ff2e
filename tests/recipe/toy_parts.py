"""Parts of one's own, a member of each seam; tests copy this file elsewhere and name it by dotted path.

The family is the smallest there can be: a linear denoiser that predicts a rectified flow's velocity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.families.base import Family
from rfft.models.parameterization import from_velocity
from rfft.objectives.base import Backward, ObjectiveSettings, Work, predict, reward_gradient, roll_out
from rfft.types import (
    Batch,
    Conditioning,
    Denoised,
    NoiseLevel,
    Policy,
    Prediction,
    Reward,
    Schedule,
    StepOutput,
)


class Velocity(nn.Module):
    """u = W x + the prompt's features, pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.linear(x) + cond.hidden.mean(1)[:, :, None, None]


class LinearDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.velocity = Velocity()

    def forward(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        return from_velocity(x, self.velocity(x, cond).to(x.dtype), level.s)


class LinearFlow(Family):
    """Latents are pictures four times smaller, with their mean as a fourth channel."""

    part = "velocity"
    latent_factor, latent_channels = 4, 4

    def __init__(self) -> None:
        self.denoiser = LinearDenoiser()

    @classmethod
    def load(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> LinearFlow:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls()

    def networks(self) -> list[nn.Module]:
        return [self.denoiser]

    def schedule(self, steps: int, size: int | None) -> Schedule:
        sigma = torch.linspace(1, 0, steps + 1)
        now, after = sigma[:-1], sigma[1:]
        return Schedule(1000 * now, 1 - now, now, 1 - after, after)

    def encode_prompts(self, prompts: list[str], size: int) -> tuple[Conditioning, list[str]]:
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return Conditioning(0.01 * lengths[:, None, None].expand(-1, 1, 4)), [""] * len(prompts)

    def blank_conditioning(self, count: int) -> Conditioning:
        return Conditioning(torch.zeros(count, 1, 4))

    def encode_image(self, pixels: Tensor) -> Tensor:
        small = 2 * F.avg_pool2d(pixels, self.latent_factor) - 1
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        return F.interpolate(latent[:, :3], scale_factor=float(self.latent_factor)) / 2 + 0.5


class OneStep:
    """An objective: the rewards see x0_hat at the first trained step; no regularizer."""

    def __init__(self, settings: ObjectiveSettings, factor: float = 1.0) -> None:
        self.settings, self.factor = settings, factor

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        return Work(ks[0], 1, 0, backwards=1, graphs=1)

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        x = roll_out(policy, batch, schedule, self.settings, 0, ks[0], batch.noise)
        theta = predict(policy.denoiser, x, ks[0], batch, schedule, self.settings.guidance_scale)
        judged = reward_gradient(policy, reward, theta.guided.x0, batch, self.settings.decode_batch)
        backward(self.factor * (theta.guided.x0 * judged.grad).sum())
        loss = self.factor * judged.loss
        return StepOutput(loss, torch.zeros_like(loss), judged.images, len(batch), ks[0] + 1, judged.scalars)


class FirstMoment:
    """A regularizer: how far the mean of x0_hat has moved."""

    name = "l_mean"

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        return (theta.guided.x0.mean() - ref.guided.x0.mean()).square()


class Brightness:
    """A reward: it likes bright pictures."""

    def __init__(self, wanted: float = 1.0) -> None:
        self.wanted = wanted

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        brightness = image.mean((1, 2, 3))
        return (brightness - self.wanted).square(), {"brightness": brightness.mean()}


class Rule:
    """A verdict without a gradient: more of the picture is dark than not. `rfft check` must not ask it."""

    differentiable = False

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        dark = (image.detach() < 0.5).float().mean((1, 2, 3))
        return -dark, {"dark": dark.mean()}
