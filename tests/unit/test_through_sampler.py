"""Training through the sampler: DRaFT-K, whole, and DRTune, by the sampler's own way alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.diffusion.guidance import guide
from rfft.diffusion.losses import l_cc, l_kl
from rfft.diffusion.sampling import advance, denoise_twice
from rfft.models.bundle import Bundle
from rfft.objectives.base import ObjectiveSettings, predict, render
from rfft.objectives.surrogate import Surrogate
from rfft.types import Batch, Denoised, Reward
from tests.toys import regularizers

STEPS, SCALE = 5, 3.0


@pytest.mark.parametrize("last", [1, 2])
def test_the_gradient_is_that_of_the_sampler(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], reward: Reward, last: int
) -> None:
    bundle = make_trained("denoiser_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    ks = list(range(STEPS))[-last:]
    output = Surrogate(ObjectiveSettings(SCALE), sees="finished", alpha=1.0).step(
        bundle, reward, batch, schedule, ks, Tensor.backward
    )
    found = {name: p.grad.clone() for name, p in bundle.trainable().items() if p.grad is not None}
    bundle.unwrapped.zero_grad()

    x = batch.noise
    for k in range(STEPS):
        with torch.set_grad_enabled(k >= STEPS - last):
            x = advance(
                guide(*denoise_twice(bundle.denoiser, x, k, batch, schedule), SCALE, x, schedule.level(k)),
                k,
                batch,
                schedule,
            )
    image = render(bundle, x, batch)
    loss = reward(image, batch)[0].mean()
    loss.backward()
    assert_close(output.loss, loss.detach())
    assert_close(output.images, image.detach())
    assert output.forwards == STEPS and output.reg == 0
    for name, parameter in bundle.trainable().items():
        assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ks", [[4], [1, 3], [2, 3, 4]])
@pytest.mark.parametrize("regularizer", ["cc", "kl", "none"])
def test_drtune_spelt_out(
    make_trained: Callable[..., Bundle],
    make_batch: Callable[..., Batch],
    reward: Reward,
    ks: list[int],
    regularizer: str,
) -> None:
    """The gradient reaches trained steps by eqs (1) and (2) alone; inputs and all other steps are data."""
    bundle = make_trained("denoiser_lora")
    batch, schedule, beta = make_batch(bundle), bundle.schedule(STEPS), 0.5
    objective = Surrogate(ObjectiveSettings(SCALE, regularizers(regularizer), beta), sees="finished")
    output = objective.step(bundle, reward, batch, schedule, ks, Tensor.backward)
    found = {name: p.grad.clone() for name, p in bundle.trainable().items() if p.grad is not None}
    bundle.unwrapped.zero_grad()

    x, regs = batch.noise, []
    for k in range(STEPS):
        theta = predict(bundle.denoiser, x.detach(), k, batch, schedule, SCALE)
        if k in ks:
            with torch.no_grad(), bundle.reference():
                ref = predict(bundle.denoiser, x, k, batch, schedule, SCALE)
            regs.append(
                {
                    "cc": l_cc(theta.g, ref.g),
                    "kl": l_kl(theta.guided.eps, ref.guided.eps),
                    "none": x.new_zeros(()),
                }
            )
        eps = theta.guided.eps if k in ks else theta.guided.eps.detach()
        x0 = (x - schedule.s[k] * eps) / schedule.a[k]  # (1): x itself hands the gradient on
        x = advance(Denoised(x0, eps), k, batch, schedule)
    reg = torch.stack([terms[regularizer] for terms in regs]).mean()
    loss = reward(render(bundle, x, batch), batch)[0].mean() + beta * reg
    loss.backward()

    assert_close(output.loss, loss.detach())
    assert_close(output.reg, reg.detach())
    assert output.forwards == STEPS + (len(ks) if regularizer != "none" else 0)
    for name, parameter in bundle.trainable().items():
        assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)
