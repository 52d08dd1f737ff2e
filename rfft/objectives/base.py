"""What an objective is, and what all of them are made of: guided predictions, and the rewards' gradient.

Shapes: B batch, C channels, h w latent, H W pixels, K trained steps. No logging, devices or ranks in here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rfft.diffusion.compositing import paste
from rfft.diffusion.guidance import guidance_direction, guide
from rfft.diffusion.sampling import denoise_once, denoise_twice, inpaint, rollout
from rfft.objectives.regularizers import Regularized, Regularizer, measure
from rfft.types import Batch, Denoise, NoiseLevel, Policy, Prediction, Reward, Schedule, StepOutput
from rfft.utils.estimate import Cost

GRADIENT_SCALE = 1024.0
Backward = Callable[[Tensor], object]  # takes a scalar loss; adds up the gradients of what is trained


@dataclass(frozen=True)
class ObjectiveSettings:
    """(9) F_total = rewards' losses + beta * regularizer, and how exactly it is computed."""

    guidance_scale: float
    regularizer: Regularizer | None = None  # None: no forward of the reference either
    beta: float = 0.0
    # Of the denoiser's forwards with gradient and the reference's: half precision's rounding moves the two
    # further apart than a small regularizer sees. fp32 and tf32 differ in torch's switches alone.
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    decode_batch: int | None = None  # pictures decoded and judged at a time; None: all
    step_weights: Sequence[float] = ()  # of the regularizer, for each of the S steps; (): 1 for all

    def weight(self, k: int) -> float:
        """Return the regularizer's weight at step k."""
        return self.step_weights[k] if self.step_weights else 1.0


@dataclass(frozen=True)
class Work:
    """What a micro-batch costs: batched forwards of the denoiser, and what lies in memory at once."""

    rollout: int  # forwards without gradient
    trained: int  # forwards with gradient
    reference: int  # forwards of the frozen reference
    backwards: int  # backward passes, each with pictures decoded and judged
    graphs: int  # forwards with gradient whose activations wait at the same time
    chained: bool = False  # does the gradient enter denoisers by their input?
    merges_beside_graphs: bool = False  # are LoRA weights merged while activations wait?
    # In micro-batches of pictures, where several are painted for each product and prompt:
    painted: int = 1  # a forward of the rollout
    learned: int = 1  # a forward with gradient, or of the reference
    verdicts: int | None = None  # judged without gradient; None: one with gradient for each backward

    @property
    def forwards(self) -> int:
        """All batched forwards of the denoiser."""
        return self.rollout + self.trained + self.reference

    def flops(self, denoiser: Cost, settings: ObjectiveSettings) -> float:
        """Return the denoiser's FLOPs; `denoiser`: of a guided forward of a micro-batch, null and prompt."""
        halves = 0.5 if settings.guidance_scale == 1 else 1.0  # there is no null, where nobody needs it
        free = self.painted * self.rollout * halves * denoiser.forward
        learned = (self.trained + self.reference) * denoiser.forward + self.trained * denoiser.backward
        return free + self.learned * learned * (halves if settings.regularizer is None else 1.0)


class Objective(Protocol):
    """A way in which verdicts become a gradient: one file in objectives/, or anybody's own.

    It is made from ObjectiveSettings and the config's objective.options as keyword arguments.
    """

    settings: ObjectiveSettings
    needs_gradient: bool  # must the rewards be differentiable? Assumed where an objective does not say

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        """Return what step() costs for `steps` sampling steps and the trained ones ks."""

    def step(
        self,
        policy: Policy,
        reward: Reward,
        batch: Batch,
        schedule: Schedule,
        ks: Sequence[int],
        backward: Backward,
    ) -> StepOutput:
        """Compute one micro-batch and hand its losses to `backward`; ks are ascending indices of steps."""


def roll_out(
    policy: Policy,
    batch: Batch,
    schedule: Schedule,
    settings: ObjectiveSettings,
    start: int,
    stop: int,
    x: Tensor,
) -> Tensor:
    """Return x at step `stop` from x at step `start`, without gradient, by what the policy rolls out."""
    if stop <= start:
        return x
    with policy.rolling() as denoiser:
        return rollout(denoiser, batch, schedule, settings.guidance_scale, start, stop, x)


def predict(
    denoiser: Denoise,
    x: Tensor,
    k: int,
    batch: Batch,
    schedule: Schedule,
    guidance_scale: float,
    directed: bool = True,
) -> Prediction:
    """Return the guided pair x0_hat, eps_hat at step k and the direction in which the text steers.

    Not `directed`: without that direction, and at guidance 1 without null's half of the forward.
    """
    level = schedule.level(k)
    if guidance_scale == 1 and not directed:
        return Prediction(denoise_once(denoiser, x, k, batch, schedule), x.new_empty(0))
    z, null = denoise_twice(denoiser, x, k, batch, schedule)
    return Prediction(guide(z, null, guidance_scale, x, level), guidance_direction(z.eps, null.eps, level.s))


def predict_regularized(
    policy: Policy, x: Tensor, k: int, batch: Batch, schedule: Schedule, settings: ObjectiveSettings
) -> tuple[Prediction, Regularized]:
    """Return what the model predicts at x, with gradient, and its regularized distance from the reference.

    The reference's prediction is data, even where x has a gradient.
    """
    # Older torch (before pytorch/pytorch#165068): autocast reuses casts of trainable weights that it made
    # without gradient, and the gradient ends there.
    torch.clear_autocast_cache()
    with autocast_for(settings.precision, x.device):
        scale, regularized = settings.guidance_scale, settings.regularizer is not None
        theta = predict(policy.denoiser, x, k, batch, schedule, scale, directed=regularized)
        if settings.regularizer is None:
            return theta, Regularized(x.new_zeros(()), {})
        with torch.no_grad(), policy.reference():
            ref = predict(policy.denoiser, x, k, batch, schedule, scale)
        return theta, measure(settings.regularizer, theta, ref, settings.weight(k))


def autocast_for(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which the objective's forwards run; it is within that of the rollout."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision in ("fp16", "bf16"))


@dataclass
class RewardGradient:
    """What the rewards say of a batch of latents x0, detached; scalars are means over the batch."""

    loss: Tensor
    grad: Tensor  # [B,C,h,w] of the loss with respect to x0
    images: Tensor  # [B,3,H,W]
    scalars: dict[str, Tensor]


def reward_gradient(
    policy: Policy, reward: Reward, x0: Tensor, batch: Batch, decode_batch: int | None
) -> RewardGradient:
    """Decode x0 with the product in it, and ask the rewards.

    Decoder and rewards are frozen, so the chain rule may stop at x0 and go on from there: exact, and
    only `decode_batch` pictures need the memory of a decoder's backward pass at a time.
    """
    parts, total = [], len(batch)
    for rows in torch.arange(total, device=x0.device).split(decode_batch or total):
        latent, products = x0[rows].detach().requires_grad_(), batch.index(rows)
        image = render(policy, latent, products, preview=True)
        losses, scalars = reward(image, products)
        share = len(rows) / total
        # The factor, a power of two and so exact, keeps half precision's small gradients from vanishing.
        (grad,) = torch.autograd.grad(GRADIENT_SCALE * share * losses.mean(), latent)
        means = torch.stack([share * value.detach().float() for value in (losses.mean(), *scalars.values())])
        parts.append((means, grad / GRADIENT_SCALE, image.detach()))
    means = torch.stack([part[0] for part in parts]).sum(0)
    grads, images = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    return RewardGradient(means[0], grads, images, dict(zip(scalars, means[1:], strict=True)))


def render(policy: Policy, x0: Tensor, batch: Batch, preview: bool = False) -> Tensor:
    """Return the picture [B,3,H,W] in [0,1] that x0 stands for, with the product's latent and pixels in it.

    `preview`: by the decoder for training.
    """
    return paste(render_bare(policy, x0, batch, preview), batch.product)


def render_bare(policy: Policy, x0: Tensor, batch: Batch, preview: bool = False) -> Tensor:
    """Return the same as the decoder shows it, before the product's own pixels are pasted."""
    decode = policy.preview if preview else policy.decode
    image = decode(inpaint(x0, batch.x_o, batch.mask))
    # Judge what will be seen: saved pictures are clamped, and nothing is to be won outside [0,1].
    return image.clamp(0, 1)


def means(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each scalar over rows of the same names."""
    return {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0]}


def gradient_norms(
    theta: Prediction, reg: Tensor, reward_grad: Tensor, level: NoiseLevel, settings: ObjectiveSettings
) -> dict[str, Tensor]:
    """Return the norms of both terms' gradients with respect to the predicted noise eps_hat, at fixed x.

    `reward_grad` [B,C,h,w] is the rewards' gradient at x0_hat. As x0_hat = (x - s eps_hat) / a, the reward's
    norm has a factor s / a and, by (7), L_CC's 1 / s: their ratio says which of them steers at this step.
    """
    norms = {"grad_reward": level.s / level.a * reward_grad.norm()}
    if settings.regularizer is None or not reg.requires_grad:
        return norms
    parts = (*theta.guided, theta.g)
    grads = torch.autograd.grad(settings.beta * reg, parts, retain_graph=True, allow_unused=True)
    factors = (level.s / level.a, 1.0, 1 / level.s)  # of x0_hat, eps_hat and g
    squares = [
        (factor * grad.norm()) ** 2 for factor, grad in zip(factors, grads, strict=True) if grad is not None
    ]
    return norms | {f"grad_{settings.regularizer.name}": sum(squares, reg.new_zeros(())).sqrt()}
