"""Ours against diffusers: the DDIM step, and a whole rollout against the inpainting pipeline."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from rfft.diffusion.sampling import ddim_step, rollout
from rfft.models.bundle import Bundle, Denoiser
from rfft.types import Batch
from tests.stock import stock_picture, with_drawn_latent


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("alpha_to_one", [False, True])
def test_ddim_step_by_step(bundle: Bundle, steps: int, spacing: str, alpha_to_one: bool) -> None:
    config = dict(bundle.pipe.scheduler.config, timestep_spacing=spacing, set_alpha_to_one=alpha_to_one)
    scheduler = bundle.pipe.scheduler = DDIMScheduler.from_config(config)
    schedule = bundle.schedule(steps)
    assert len(schedule) == steps
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    for i, t in enumerate(scheduler.timesteps):
        eps = torch.randn(x.shape, generator=generator)
        ours = ddim_step(x, eps, schedule.alpha_bar[i], schedule.alpha_bar_next[i])
        x = scheduler.step(eps, t, x).prev_sample
        assert_close(ours, x)


@pytest.mark.parametrize("steps", [5, 40])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_rollout_is_the_pipelines(
    bundle: Bundle, make_batch: Callable[..., Batch], steps: int, prediction_type: str
) -> None:
    bundle.pipe.scheduler.register_to_config(prediction_type=prediction_type)
    denoiser = Denoiser(bundle.pipe.unet, bundle.pipe.controlnet, bundle.pipe.scheduler).eval()
    batch = with_drawn_latent(bundle, make_batch(bundle))
    ours = rollout(denoiser, batch, bundle.schedule(steps), guidance_scale=4.0)
    theirs = stock_picture(bundle.pipe, batch, steps, 4.0, "latent")
    assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_prompts_and_decoding_are_the_pipelines(bundle: Bundle) -> None:
    prompts = ["a park", "a bookcase, a very long prompt that takes more than there is room for"]
    ours, cut = bundle.encode_prompts(prompts, 32)
    theirs, _ = bundle.pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(ours.hidden, theirs)
    assert cut[0] == "" and cut[1].endswith("room for")

    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        pixels = bundle.vae.decode(latent / bundle.vae.config.scaling_factor).sample
        assert_close(bundle.decode(latent), pixels / 2 + 0.5)
