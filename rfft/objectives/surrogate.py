"""THE TRAINING STEP: the rewards' verdict goes back along a surrogate of the sampler's trajectory.

The trajectory is walked once, and its picture is the sampler's own, to the bit. Methods differ in how a
gradient comes back, the design space of FlowBP (arXiv 2606.11075): what the rewards see, which steps are
active (objectives/draw.py), with which weight, how far they are coupled. config/presets.py names some.

Shapes: B batch, C channels, h w latent, K active steps. Equation numbers are those of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rfft.diffusion.noise import more_noise
from rfft.diffusion.sampling import add_noise, advance, carry, coefficients, inpaint
from rfft.errors import require
from rfft.objectives.base import (
    Backward,
    ObjectiveSettings,
    RewardGradient,
    Work,
    gradient_norms,
    means,
    predict_regularized,
    reward_gradient,
    roll_out,
)
from rfft.objectives.regularizers import Regularized
from rfft.types import Batch, Denoised, Policy, Reward, Schedule, StepOutput

SEES, COUPLED = ("x0_hat", "finished"), ("all", "one")


class MicroBatch(NamedTuple):
    """What Objective.step() is given."""

    policy: Policy
    reward: Reward
    batch: Batch
    schedule: Schedule
    ks: Sequence[int]
    backward: Backward


class Surrogate:
    """One way to send a verdict back through the sampler; by itself the paper's (arXiv 2408.00418)."""

    needs_gradient = True

    def __init__(
        self,
        settings: ObjectiveSettings,
        sees: Literal["x0_hat", "finished"] = "x0_hat",
        alpha: float = 0.0,
        coupled: Literal["all", "one"] = "all",
        rescale: float = 0.0,
        leap: float = 0.0,
        noised: int = 0,
    ) -> None:
        """Choose the design; raises UserError for one that makes no sense.

        sees: "x0_hat", foreseen and judged at each active step, or the "finished" picture, judged once.
        alpha: share of the gradient that enters an active step's denoiser by its input; 0: none, 1: the whole
        chain. coupled: that holds for "all" active steps, or for the middle "one" (FlowBP's bridge).
        rescale: 0: active steps have the sampler's own coefficients; 1: scaled up to stand for all S steps.
        leap: above 0, an active step's prediction leads to the next active one at once, and a picture counts
        less if its leaps miss the trajectory by more than this, in latent units (LeapAlign's tau).
        noised: so many noised copies of the finished picture take the last step again (DRaFT-LV).
        """
        require(sees in SEES, f"objective.options.sees={sees!r}: it is {' or '.join(SEES)}")
        require(coupled in COUPLED, f"objective.options.coupled={coupled!r}: it is {' or '.join(COUPLED)}")
        for name, value, most in (("alpha", alpha, 1), ("rescale", rescale, 1), ("leap", leap, None)):
            limit = "0 at least" if most is None else "from 0 to 1"
            fits = value >= 0 and (most is None or value <= most)
            require(fits, f"objective.options.{name}={value}: it is {limit}")
        require(noised >= 0 and noised == int(noised), f"objective.options.noised={noised}: it is a count")
        require(
            sees == "finished" or not (alpha or rescale or leap or noised),
            "objective.options.sees=x0_hat judges each active step alone: alpha, rescale, leap and noised "
            "need objective.options.sees=finished",
        )
        self.settings, self.sees, self.alpha, self.coupled = settings, sees, alpha, coupled
        self.rescale, self.leap, self.noised = rescale, leap, noised

    def work(self, steps: int, ks: Sequence[int]) -> Work:
        """Return the forwards: an active one is the rollout's own step, noised copies come on top."""
        active = len(ks)
        references = active if self.settings.regularizer is not None else 0
        if self.sees == "x0_hat":
            return Work(max(ks) + 1 - active, active, references, backwards=active, graphs=1)
        return Work(
            steps - active,
            active + self.noised,
            references,
            backwards=1 + self.noised,
            graphs=active,
            chained=self.alpha > 0,
            merges_beside_graphs=list(ks) != list(range(steps - active, steps)),
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
        """Train at the active steps ks of one rollout."""
        micro = MicroBatch(policy, reward, batch, schedule, ks, backward)
        return self._foreseen(micro) if self.sees == "x0_hat" else self._finished(micro)

    # ---- what is foreseen is judged ----

    def _foreseen(self, micro: MicroBatch) -> StepOutput:
        """Judge x0_hat at each active step; the gradients are averaged.

        Each step costs a forward with gradient, a reference forward and a backward, which leaves no
        activations behind; what lies behind the last one is never computed.
        """
        policy, reward, batch, schedule, ks, backward = micro
        settings, per_k = self.settings, {}
        regs, judgements = [], []
        x, position = batch.noise, 0
        for k in ks:
            x = roll_out(policy, batch, schedule, settings, position, k, x)
            theta, reg = predict_regularized(policy, x, k, batch, schedule, settings)
            judged = reward_gradient(policy, reward, theta.guided.x0, batch, settings.decode_batch)
            norms = gradient_norms(theta, reg.loss, judged.grad, schedule.level(k), settings)
            # Its gradient is that of F_total, and the decoder's activations are gone by now.
            backward(((theta.guided.x0 * judged.grad).sum() + settings.beta * reg.loss) / len(ks))

            regs.append(Regularized(reg.loss.detach(), reg.scalars))
            judgements.append(judged)
            named = {} if settings.regularizer is None else {settings.regularizer.name: regs[-1].loss}
            per_k[k] = {"reward": judged.loss} | named | norms
            x = advance(_detached(theta.guided), k, batch, schedule)
            position = k + 1
        return replace(self._output(micro, judgements, regs), per_k=per_k)

    # ---- the finished picture is judged ----

    def _finished(self, micro: MicroBatch) -> StepOutput:
        """Judge the finished picture; one backward pass reaches all active steps."""
        policy, reward, batch, _, _, backward = micro
        settings, share = self.settings, 1 / (1 + self.noised)
        x, regs, weight = self._walk(micro)
        judged = reward_gradient(policy, reward, x, batch, settings.decode_batch)
        reg = torch.stack([reg.loss for reg in regs]).mean()
        backward(share * (x * weight * judged.grad).sum() + settings.beta * reg)
        judgements = [judged]
        for number in range(self.noised):
            again = self._last_step_again(micro, x.detach(), number)
            judged = reward_gradient(policy, reward, again, batch, settings.decode_batch)
            backward(share * (again * judged.grad).sum())
            judgements.append(judged)
        return self._output(micro, judgements, [Regularized(r.loss.detach(), r.scalars) for r in regs])

    def _walk(self, micro: MicroBatch) -> tuple[Tensor, list[Regularized], Tensor]:
        """Return the finished latent with the surrogate's gradient, regularizers, and weights [B,1,1,1]."""
        policy, _, batch, schedule, ks, _ = micro
        settings, steps, free = self.settings, len(schedule), 1 - batch.mask
        g, regs = self._scale(schedule, ks), []
        missed = batch.noise.new_zeros(len(batch), 1, 1, 1)
        x = roll_out(policy, batch, schedule, settings, 0, ks[0], batch.noise)
        for i, k in enumerate(ks):
            alpha = self.alpha if self.coupled == "all" or i == len(ks) // 2 else 0.0
            seen = x.detach() + alpha * (x - x.detach()) if alpha else x.detach()
            theta, reg = predict_regularized(policy, seen, k, batch, schedule, settings)
            regs.append(reg)
            following = ks[i + 1] if i + 1 < len(ks) else steps
            after = advance(_detached(theta.guided), k, batch, schedule)
            after = roll_out(policy, batch, schedule, settings, k + 1, following, after)

            reached = following if self.leap else k + 1  # by this prediction; from there x is carried on
            level = schedule.a_next[reached - 1], schedule.s_next[reached - 1]
            sent = add_noise(theta.guided.x0, theta.guided.eps, *level)
            if self.leap:
                gap = free * (sent.detach() - after)
                missed = missed + gap.abs().mean((1, 2, 3), keepdim=True).clamp(min=self.leap)
            # What enters by x: g alpha of it is in `sent` already; the sampler alone carries the rest.
            through = g * sent + (1 - g * alpha) * carry(schedule, k, reached) * x
            through = free * carry(schedule, reached, following) * through
            x = after + (through - through.detach())  # after's value to the bit
        return x, regs, 1 / missed if self.leap else torch.ones_like(missed)

    def _scale(self, schedule: Schedule, ks: Sequence[int]) -> Tensor:
        """Return g, by which the active steps' coefficients are multiplied."""
        if not self.rescale:
            return torch.ones_like(schedule.a[0])
        sizes = coefficients(schedule).abs()
        return 1 + self.rescale * (sizes.sum() / sizes[list(ks)].sum() - 1)

    def _last_step_again(self, micro: MicroBatch, x0: Tensor, number: int) -> Tensor:
        """Return what the last step makes of the finished latent x0 noised anew, with gradient."""
        policy, _, batch, schedule, _, _ = micro
        k = len(schedule) - 1
        noise = more_noise(batch.noise, number)
        x = add_noise(x0, noise, schedule.a[k], schedule.s[k])
        x = inpaint(x, add_noise(batch.x_o, batch.noise, schedule.a[k], schedule.s[k]), batch.mask)
        plain = replace(self.settings, regularizer=None)
        theta, _ = predict_regularized(policy, x, k, batch, schedule, plain)
        return advance(theta.guided, k, batch, schedule)

    def _output(
        self, micro: MicroBatch, judgements: Sequence[RewardGradient], regs: Sequence[Regularized]
    ) -> StepOutput:
        """Return means over the verdicts, and over the active steps' regularizers."""
        losses = torch.stack([judged.loss for judged in judgements]).mean(0)
        reg = torch.stack([reg.loss for reg in regs]).mean(0)
        return StepOutput(
            loss=losses + self.settings.beta * reg,
            reg=reg,
            images=judgements[-1].images,
            pictures=len(micro.batch) * len(judgements),
            forwards=self.work(len(micro.schedule), micro.ks).forwards,
            scalars=means([judged.scalars for judged in judgements]) | means([reg.scalars for reg in regs]),
        )


def _detached(guided: Denoised) -> Denoised:
    return Denoised(*(part.detach() for part in guided))
