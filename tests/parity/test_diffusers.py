"""Ours against diffusers: the steps of DDIM and of a flow, and a whole rollout against the pipeline."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from rfft.diffusion.sampling import add_noise, rollout
from rfft.models.bundle import Bundle
from rfft.models.denoiser import UNetDenoiser
from rfft.models.parameterization import from_epsilon, from_velocity
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
        pair = from_epsilon(x, eps, schedule.a[i], schedule.s[i])
        ours = add_noise(*pair, schedule.a_next[i], schedule.s_next[i])
        x = scheduler.step(eps, t, x).prev_sample
        assert_close(ours, x)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_step_is_eulers(shift: float) -> None:
    """From pure noise, where a = 0, to the clean latent, step by step."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    for i, t in enumerate(scheduler.timesteps):
        u = torch.randn(x.shape, generator=generator)
        sigma, following = scheduler.sigmas[i], scheduler.sigmas[i + 1]
        ours = add_noise(*from_velocity(x, u, sigma), 1 - following, following)
        x = scheduler.step(u, t, x).prev_sample
        assert_close(ours, x)
    assert following == 0


@pytest.mark.parametrize("steps", [5, 40])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_rollout_is_the_pipelines(
    bundle: Bundle, make_batch: Callable[..., Batch], steps: int, prediction_type: str
) -> None:
    bundle.pipe.scheduler.register_to_config(prediction_type=prediction_type)
    denoiser = UNetDenoiser(bundle.pipe.unet, bundle.pipe.controlnet, prediction_type).eval()
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
        pixels = bundle.family.vae.decode(latent / bundle.family.vae.config.scaling_factor).sample
        assert_close(bundle.decode(latent), pixels / 2 + 0.5)
