"""THE TRAINING STEP: roll out to a late DDIM step, judge the picture foreseen there, push the verdict back.

Shapes: B batch, h w latent, H W pixels, K trained steps. Equation numbers are those of the README.
No logging, devices or ranks in here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rfft.diffusion.losses import f_ac, l_cc, l_kl
from rfft.diffusion.sampling import (
    advance,
    cfg_eps,
    guidance_direction,
    guide,
    inpaint,
    paste,
    predict_x0,
    rollout,
)
from rfft.types import Batch, Denoise, ExtraRewards, Policy, Prediction, Reward, Schedule, StepOutput

GRADIENT_SCALE = 1024.0


@dataclass(frozen=True)
class Objective:
    """(9) F_total = F_AC + beta * regularizer."""

    guidance_scale: float
    regularizer: Literal["cc", "kl", "none"] = "cc"
    beta: float = 0.0
    # The two predictions that are compared stay out of autocast: half precision's rounding moves them further
    # apart than a small regularizer sees.
    fp32: bool = True
    decode_batch: int | None = None  # pictures decoded and judged at a time; None: all
    extra: ExtraRewards | None = None  # their weighted losses are added to F_AC


def train_step(
    policy: Policy,
    reward: Reward,
    batch: Batch,
    schedule: Schedule,
    ks: Sequence[int],
    objective: Objective,
    backward: Callable[[Tensor], object],
) -> StepOutput:
    """One micro-batch: train at the DDIM steps ks (ascending) of one rollout, their gradients averaged.

    Each k costs a forward with gradient, a reference forward and a backward. The forward with gradient is
    also the rollout's own step there; what lies behind the last k is never computed.
    """
    scale = objective.guidance_scale
    x, position = batch.noise, 0
    losses, verdicts = [], []
    for k in ks:
        if k > position:
            with policy.merged():
                x = rollout(policy.denoiser, batch, schedule, scale, position, k, x)
        # Older torch (before pytorch/pytorch#165068): autocast reuses casts of trainable weights that it made
        # without gradient, and the gradient ends there.
        torch.clear_autocast_cache()
        theta, reg = compare(policy, x, k, batch, schedule, objective)
        judged = judge(policy, reward, theta.x0, batch, objective)
        # Its gradient is that of F_total, and the decoder's activations are gone by now.
        backward(((theta.x0 * judged.slope).sum() + objective.beta * reg) / len(ks))

        total = judged.f_ac + judged.extra + objective.beta * reg
        losses.append(torch.stack([total, judged.f_ac, reg, *judged.scalars.values()]).detach())
        verdicts.append(judged.logits)
        x, position = advance(x, theta.eps.detach(), k, batch, schedule), k + 1

    loss, f, reg, *scalars = torch.stack(losses).mean(0)
    all_logits = torch.stack(verdicts)
    available = (all_logits.argmax(-1) == 0).float().mean()
    forwards = position + (len(ks) if objective.regularizer != "none" else 0)
    named = dict(zip(judged.scalars, scalars, strict=True))
    return StepOutput(loss, f, reg, available, all_logits, judged.images, forwards, named)


def compare(
    policy: Policy, x: Tensor, k: int, batch: Batch, schedule: Schedule, objective: Objective
) -> tuple[Prediction, Tensor]:
    """What the model predicts at x, with gradient, and (8) or (6): how far from the reference that is."""
    scale = objective.guidance_scale
    with policy.same_input(), precision(objective, x):
        theta = predict(policy.denoiser, x, k, batch, schedule, scale)
        if objective.regularizer == "none":
            return theta, x.new_zeros(())
        with torch.no_grad(), policy.reference():
            ref = predict(policy.denoiser, x, k, batch, schedule, scale)
        return theta, l_cc(theta.g, ref.g) if objective.regularizer == "cc" else l_kl(theta.eps, ref.eps)


@dataclass
class Judged:
    """What the rewards say of a batch of x0_hat, detached; scalars are means over the batch."""

    f_ac: Tensor  # (5)
    extra: Tensor  # weighted sum of the other rewards' losses
    slope: Tensor  # [B,4,h,w] gradient of both with respect to x0_hat
    logits: Tensor  # [B,5]
    images: Tensor  # [B,3,H,W]
    scalars: dict[str, Tensor]  # of the other rewards


def judge(policy: Policy, reward: Reward, x0: Tensor, batch: Batch, objective: Objective) -> Judged:
    """Decode x0_hat and ask the rewards.

    Decoder and rewards are frozen, so the chain rule may stop at x0_hat and go on from there: exact, and
    only objective.decode_batch pictures need the memory of a decoder's backward pass at a time.
    """
    parts, total = [], len(batch)
    for rows in torch.arange(total, device=x0.device).split(objective.decode_batch or total):
        latent, products = x0[rows].detach().requires_grad_(), batch.index(rows)
        image = render(policy, latent, products, preview=True)
        logits = reward(image, products)
        extra, scalars = objective.extra(image, products) if objective.extra else (latent.new_zeros(1), {})
        verdict, extra, share = f_ac(logits), extra.mean(), len(rows) / total
        # The factor, a power of two and so exact, keeps half precision's small gradients from vanishing.
        (slope,) = torch.autograd.grad(GRADIENT_SCALE * share * (verdict + extra), latent)
        means = [share * value.detach() for value in (verdict, extra, *scalars.values())]
        parts.append((torch.stack(means), slope / GRADIENT_SCALE, logits.detach(), image.detach()))
    shares, slopes, all_logits, images = zip(*parts, strict=True)
    verdict, extra, *values = torch.stack(shares).sum(0)
    named = dict(zip(scalars, values, strict=True))
    return Judged(verdict, extra, torch.cat(slopes), torch.cat(all_logits), torch.cat(images), named)


def precision(objective: Objective, x: Tensor) -> AbstractContextManager[object]:
    """Of the denoiser's forwards that the objective is made of."""
    return torch.autocast(x.device.type, enabled=False) if objective.fp32 else nullcontext()


def predict(
    denoiser: Denoise, x: Tensor, k: int, batch: Batch, schedule: Schedule, guidance_scale: float
) -> Prediction:
    """One batched forward at tau_k: guided noise, x0_hat from it, the direction in which the text steers."""
    ab = schedule.alpha_bar[k]
    eps_z, eps_null = cfg_eps(denoiser, x, schedule.timesteps[k], batch)
    eps = guide(eps_z, eps_null, guidance_scale)
    return Prediction(eps, predict_x0(x, eps, ab), guidance_direction(eps_z, eps_null, ab))


def render(policy: Policy, x0: Tensor, batch: Batch, preview: bool = False) -> Tensor:
    """The picture [B,3,H,W] in [0,1] that x0 stands for, with the product's own latent and pixels in it.

    `preview`: by the decoder for training.
    """
    return paste(render_bare(policy, x0, batch, preview), batch.product)


def render_bare(policy: Policy, x0: Tensor, batch: Batch, preview: bool = False) -> Tensor:
    """The same as the decoder shows it, before the product's own pixels are pasted."""
    decode = policy.preview if preview else policy.decode
    image = decode(inpaint(x0, batch.x_o, batch.mask))
    # Judge what will be seen: saved pictures are clamped, and nothing is to be won outside [0,1].
    return image.clamp(0, 1)


@dataclass(frozen=True)
class Draw:
    """Which DDIM steps to train on: grad_steps of the last ones, spread evenly over an optimizer step.

    A pure function of its arguments, so that all processes stop their rollouts at the same place.
    """

    seed: int
    steps: int  # S
    last: int  # the pool: steps S - last .. S - 1
    grad_steps: int  # trained steps per micro-batch
    strata: int  # draws per optimizer step

    def __call__(self, optimizer_step: int, stratum: int) -> list[int]:
        """Ascending step indices of one draw; over the optimizer steps each is drawn equally often."""
        # Systematic sampling: points at equal distances over the pool, one offset per optimizer step.
        offset = random.Random(f"{self.seed}/{optimizer_step}").random()
        stride = self.last / self.grad_steps
        first = (stratum + offset) / self.strata
        return [self.steps - self.last + int((first + j) * stride) for j in range(self.grad_steps)]
