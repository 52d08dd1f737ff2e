"""Objectives for rewards without a gradient: each formula by hand, and what a step does of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, tensor
from torch.testing import assert_close

from rfft.diffusion.losses import dpo, nft, ppo
from rfft.diffusion.noise import more_noise
from rfft.diffusion.sampling import ancestral, log_probability
from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.objectives.base import Objective, ObjectiveSettings
from rfft.objectives.ddpo import DDPO
from rfft.objectives.dpo import DiffusionDPO, pairs
from rfft.objectives.nft import DiffusionNFT
from rfft.objectives.verdicts import advantages, grouped
from rfft.types import Batch, Denoised, Schedule, StepOutput
from tests.toys import regularizers

STEPS, PLAIN = 5, ObjectiveSettings(3.0)


def test_ppo_by_hand() -> None:
    """Ratios 1, 2 and 1/2 with clip 0.2: good and bad pictures keep at most a fifth of the gain."""
    old = torch.zeros(4)
    log_p = tensor([0.0, math.log(2), math.log(2), math.log(0.5)], requires_grad=True)
    loss = ppo(log_p, old, tensor([3.0, 1.0, -1.0, -1.0]), clip=0.2)
    assert_close(loss, tensor([-3.0, -1.2, 2.0, 0.8]))
    loss.sum().backward()
    assert_close(log_p.grad, tensor([-3.0, 0.0, 2.0, 0.0]))  # clipped ones have no gradient


@pytest.mark.parametrize("step", [0, 3, 9])
def test_the_stochastic_step_is_diffusers_ddim_with_eta_1(step: int) -> None:
    """Drawn with the same noise; its variance is that of DDPM's posterior."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    scheduler.set_timesteps(10)
    t = scheduler.timesteps
    after = t - 100
    alpha_bar = scheduler.alphas_cumprod
    ends = torch.where(after >= 0, alpha_bar[after.clamp(min=0)], scheduler.final_alpha_cumprod)
    plan = Schedule(t, alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt(), ends.sqrt(), (1 - ends).sqrt())
    x, eps, noise = torch.randn(3, 2, 4, 3, 3)
    guided = Denoised((x - plan.s[step] * eps) / plan.a[step], eps)
    mean, std = ancestral(guided, step, plan)
    expected = scheduler.step(eps, t[step], x, eta=1.0, variance_noise=noise).prev_sample
    assert_close(mean + std * noise, expected, rtol=1e-4, atol=1e-4)
    assert_close(std**2, scheduler._get_variance(t[step], after[step]), rtol=1e-4, atol=1e-6)
    if std > 0:
        drawn = mean + std * noise
        assert_close(log_probability(drawn, mean, std), torch.distributions.Normal(mean, std).log_prob(drawn))


def test_nft_by_hand() -> None:
    """One element: x0 = 2, old = 1, theta = 1.5, beta 1: positive 1.5, negative 0.5, errors 0.5 and 1.5."""

    def one(value: float) -> Tensor:
        return torch.full((1, 1, 1, 2), value)

    free = tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    loss = nft(one(1.5), one(1.0), one(2.0), tensor([0.75]), 1.0, free)
    assert_close(loss, tensor([0.75 * 0.5**2 / 0.5 + 0.25 * 1.5**2 / 1.5]))
    # beta 1/2: positive 1.25, negative 0.75
    loss = nft(one(1.5), one(1.0), one(2.0), tensor([0.75]), 0.5, free)
    assert_close(loss, tensor([(0.75 * 0.75 + 0.25 * 1.25) / 0.5]))


def test_nft_moves_toward_good_pictures_and_off_bad_ones() -> None:
    for r, sign in ((1.0, -1), (0.5, 0), (0.0, 1)):
        theta = torch.ones(1, 1, 1, 1, requires_grad=True)
        nft(
            theta, theta.detach(), torch.full((1, 1, 1, 1), 2.0), tensor([r]), 1.0, torch.ones(1, 1, 1, 1)
        ).backward()
        assert_close(theta.grad.sign(), torch.full((1, 1, 1, 1), float(sign)))


def test_dpo_by_hand() -> None:
    """Errors 0.1 instead of 0.2 on the winner, 0.4 instead of 0.3 on the loser: 1/2 strength * 0.2."""
    errors = [tensor([value]) for value in (0.1, 0.4, 0.2, 0.3)]
    assert_close(dpo(*errors, strength=10.0), tensor([math.log(1 + math.exp(-1.0))]))
    same = [tensor([0.5])] * 4
    assert_close(dpo(*same, strength=2000.0), tensor([math.log(2)]))


def test_advantages_and_pairs_by_hand() -> None:
    losses = tensor([1.0, 3.0, 5.0, 5.0])
    assert_close(advantages(losses, 2), tensor([1.0, -1.0, 0.0, 0.0]))
    assert_close(advantages(losses, 1), -(losses - 3.5) / tensor(2.75).sqrt(), rtol=1e-5, atol=1e-5)
    rows, prefers = pairs(tensor([2.0, 1.0, 3.0, 4.0, 4.0, 4.0]), 3)
    assert rows.tolist() == [1, 3, 2, 3] and prefers.tolist() == [1.0, 0.0]


def test_groups_and_their_noise(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(make_trained("denoiser_lora"))
    group = grouped(batch, 3)
    assert group.prompts == [prompt for prompt in batch.prompts for _ in range(3)]
    assert torch.equal(group.noise[::3], batch.noise)
    assert len({float(row[0, 0, 0]) for row in group.noise}) == 6
    alone = grouped(batch.index([1]), 3)  # neither batch nor rank matters
    assert torch.equal(alone.noise, group.noise[3:])
    large = more_noise(torch.randn(4, 4, 64, 64), 7)
    assert abs(float(large.mean())) < 0.02 and abs(float(large.std()) - 1) < 0.02


class Black:
    """A rule: dark pictures are good. It has no gradient."""

    differentiable = False

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert not image.requires_grad
        light = torch.tensor([float(picture.mean()) for picture in image])
        return light, {"light": light.mean()}


OBJECTIVES = {
    "ddpo": lambda settings: DDPO(settings, group=2),
    "nft": lambda settings: DiffusionNFT(settings, group=2),
    "nft-reference": lambda settings: DiffusionNFT(settings, group=2, old="reference"),
    "dpo": lambda settings: DiffusionDPO(settings, group=3),
}


def take_step(objective: Objective, bundle: Bundle, batch: Batch, ks: list[int]) -> StepOutput:
    return objective.step(bundle, Black(), batch, bundle.schedule(STEPS), ks, Tensor.backward)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_forwards_are_counted_and_gradients_reach_what_is_trained(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], name: str
) -> None:
    bundle, ks = make_trained("denoiser_lora"), [1, 3]
    batch, objective = make_batch(bundle), OBJECTIVES[name](PLAIN)
    calls: list[tuple[bool, int]] = []
    bundle.unwrapped.register_forward_pre_hook(
        lambda _, args: calls.append((torch.is_grad_enabled(), len(args[0]) // 2 // len(batch)))
    )
    output = take_step(objective, bundle, batch, ks)
    work = objective.work(STEPS, ks)
    assert output.forwards == work.forwards == len(calls)
    assert calls[:STEPS] == [(False, work.painted)] * STEPS
    assert calls[STEPS:].count((True, work.learned)) == len(ks) == work.trained
    assert calls[STEPS:].count((False, work.learned)) == work.reference
    assert output.pictures == work.painted * len(batch) and "light" in output.scalars
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bundle.trainable().values())
    assert any(p.grad.any() for p in bundle.trainable().values())


def test_ddpo_spelt_out(make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch]) -> None:
    """The gradient is that of - advantage * mean log-probability of what was drawn, outside the product."""
    bundle, ks = make_trained("denoiser_lora"), [2]
    batch = make_batch(bundle)
    take_step(DDPO(PLAIN, group=2), bundle, batch, ks)
    found = {name: p.grad.clone() for name, p in bundle.trainable().items()}
    bundle.unwrapped.zero_grad()

    from rfft.diffusion.sampling import inpaint_next
    from rfft.objectives.base import predict, render

    group, plan = grouped(batch, 2), bundle.schedule(STEPS)
    x, log_p = group.noise, torch.zeros(4)
    for k in range(STEPS):
        guided = predict(bundle.denoiser, x, k, group, plan, 3.0).guided
        mean, std = ancestral(guided, k, plan)
        drawn = (mean + std * more_noise(group.noise, k)).detach()
        if k in ks:
            free = (1 - group.mask).expand_as(x)
            log_p = (free * -0.5 * ((drawn - mean) / std) ** 2).sum((1, 2, 3)) / free.sum((1, 2, 3))
        x = inpaint_next(drawn, k, group, plan)
    losses, _ = Black()(render(bundle, x, group).detach(), group)
    (-(advantages(losses, 2) * log_p).mean()).backward()
    for name, parameter in bundle.trainable().items():
        assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_dpo_of_the_untrained_model(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch]
) -> None:
    """It orders no pair yet: the loss is log 2."""
    bundle = make_trained("denoiser_lora", shift=0.0)
    output = take_step(DiffusionDPO(PLAIN, group=2), bundle, make_batch(bundle), [1, 3])
    assert_close(output.loss, tensor(math.log(2)))
    assert output.scalars["preferred"] == 0


def test_steps_that_draw_nothing_are_not_trained(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch]
) -> None:
    """The last step of a flow reaches s = 0: DDPO takes the one before."""
    bundle = make_trained("denoiser_lora")
    plan = bundle.schedule(STEPS)
    ends = plan.s_next.clone()
    ends[-1] = 0
    plan = Schedule(plan.timesteps, plan.a, plan.s, plan.a_next, ends)
    output = DDPO(PLAIN, group=2).step(
        bundle, Black(), make_batch(bundle), plan, [STEPS - 1], Tensor.backward
    )
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in bundle.trainable().values())


def test_what_is_refused() -> None:
    for make, told in (
        (lambda: DiffusionDPO(ObjectiveSettings(1.0, regularizers("cc"))), "set objective.regularizer=none"),
        (lambda: DiffusionDPO(PLAIN, group=1), "group=1: pictures for each product and prompt, 2 at least"),
        (lambda: DiffusionNFT(PLAIN, old="ema"), "it is policy or reference"),
        (lambda: DDPO(PLAIN, clip=0), "above 0"),
    ):
        with pytest.raises(UserError, match=told):
            make()
