"""DRaFT-K: the gradient of the whole last part of the sampler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.baselines import draft_step
from rfft.diffusion import advance, cfg_eps, guide
from rfft.losses import f_ac
from rfft.models.bundle import Bundle
from rfft.step import Objective, render
from rfft.types import Batch, Reward

STEPS, SCALE = 5, 3.0


@pytest.mark.parametrize("last", [1, 2])
def test_the_gradient_is_that_of_the_sampler(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], reward: Reward, last: int
) -> None:
    bundle = make_trained("unet_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    output = draft_step(bundle, reward, batch, schedule, last, Objective(SCALE, "none"), Tensor.backward)
    found = {name: p.grad.clone() for name, p in bundle.trainable().items() if p.grad is not None}
    bundle.unwrapped.zero_grad()

    x = batch.noise
    for k in range(STEPS):
        with torch.set_grad_enabled(k >= STEPS - last):
            eps = guide(*cfg_eps(bundle.denoiser, x, schedule.timesteps[k], batch), SCALE)
            x = advance(x, eps, k, batch, schedule)
    image = render(bundle, x, batch)
    loss = f_ac(reward(image, batch))
    loss.backward()
    assert_close(output.loss, loss.detach())
    assert_close(output.images, image.detach())
    assert output.forwards == STEPS and output.reg == 0
    for name, parameter in bundle.trainable().items():
        assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)
