"""What bases share that are rectified flows: their noise levels, and how latents become tokens.

Shapes: B batch, C latent channels, h w latent, S sampling steps, L = h w / 4 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rfft.errors import UserError, require
from rfft.types import Schedule


def euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """Return a deterministic Euler scheduler with the noise levels of the given one."""
    try:
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, stochastic_sampling=False)
    except (TypeError, ValueError) as error:
        raise UserError("the bundle's scheduler must be FlowMatchEulerDiscreteScheduler") from error


def flow_schedule(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, **options: Any) -> Schedule:
    """Return Euler's steps with a = 1 - sigma, s = sigma; `options` are those of its set_timesteps.

    Raises UserError for more steps than the model was trained with.
    """
    known = scheduler.config.num_train_timesteps
    require(steps <= known, f"rollout.steps={steps}: the bundle knows {known} timesteps; set fewer steps")
    scheduler.set_timesteps(steps, **options)
    sigma = scheduler.sigmas.to(torch.float32)
    now, after = sigma[:-1], sigma[1:]
    return Schedule(scheduler.timesteps, 1 - now, now, 1 - after, after)
