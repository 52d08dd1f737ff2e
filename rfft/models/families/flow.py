"""What bases share that are rectified flows of a transformer: noise levels, tokens, what is never used.

Shapes: B batch, C latent channels, h w latent, S sampling steps, L = h w / 4 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from rfft.errors import UserError, require
from rfft.models.families.pipeline import PipelineFamily
from rfft.types import Conditioning, Schedule, Size, sides

# Of a joint block behind which no text is read: its query and what follows the attention.
TEXT_PARTS = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "ff_context", "txt_mlp")


class FlowFamily(PipelineFamily):
    """A base whose denoiser is a transformer that predicts a velocity; its patches are 2 x 2 latents."""

    part = "transformer"
    scheduler_kind = FlowMatchEulerDiscreteScheduler
    encodes_control = True
    keeps_norm: ClassVar[bool] = False  # see types.Schedule
    dynamic_shift: ClassVar[bool] = False  # do noise levels depend on the pictures' size?

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        """Take the diffusers pipeline; its scheduler becomes a deterministic Euler one."""
        super().__init__(pipe, controlnet)
        pipe.scheduler = euler(pipe.scheduler)

    def schedule(self, steps: int, size: Size | None) -> Schedule:
        """Return Euler's steps with a = 1 - sigma, s = sigma."""
        patch = 2 * self.latent_factor
        require(
            size is None or all(side % patch == 0 for side in sides(size)),
            f"data.image_size={size} is no multiple of {patch}, this base's patches in pixels",
        )
        scheduler = self.pipe.scheduler
        known = scheduler.config.num_train_timesteps
        require(steps <= known, f"rollout.steps={steps}: the bundle knows {known} timesteps; set fewer steps")
        tokens = None if size is None else math.prod(side // patch for side in sides(size))
        scheduler.set_timesteps(
            steps, **(dynamic_levels(scheduler, steps, tokens) if self.dynamic_shift else {})
        )
        sigma = scheduler.sigmas.to(torch.float32)
        now, after = sigma[:-1], sigma[1:]
        return Schedule(scheduler.timesteps, 1 - now, now, 1 - after, after, self.keeps_norm)

    def _encode_kept(self, product: Tensor) -> Tensor:
        """Return the latent of what is kept of products [B,4,H,W], black elsewhere, and where that is (1)."""
        kept = (product[:, 3:] >= 0.5).to(product.dtype)
        latent = self.encode_image(product[:, :3] * kept)
        return torch.cat([latent, F.interpolate(kept, latent.shape[-2:])], dim=1)


class FlowDenoiser(nn.Module):
    """Transformer + ControlNet: x [B,C,h,w] at a noise level -> x0_hat and eps_hat, in x's precision."""

    def __init__(self, transformer: Any, controlnet: Any) -> None:
        """Take diffusers' transformer and ControlNet of one base."""
        super().__init__()
        self.transformer = transformer
        self.controlnet = controlnet


def dynamic_levels(scheduler: Any, steps: int, tokens: int | None) -> dict[str, Any]:
    """Return set_timesteps' options as FLUX's and Qwen-Image's pipelines give them: mu grows with the size.

    Raises ValueError where the number of tokens is needed and not known.
    """
    levels: dict[str, Any] = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
    if not scheduler.config.use_dynamic_shifting:
        return levels
    if tokens is None:
        raise ValueError("this base's noise levels depend on the pictures' size: schedule(steps, size)")
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    config = [scheduler.config.get(name, value) for name, value in defaults.items()]
    return levels | {"mu": calculate_shift(tokens, *config)}


def euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """Return a deterministic Euler scheduler with the noise levels of the given one."""
    try:
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, stochastic_sampling=False)
    except (TypeError, ValueError) as error:
        raise UserError("the bundle's scheduler must be FlowMatchEulerDiscreteScheduler") from error


def pack(latent: Tensor) -> Tensor:
    """Return the tokens [B,L,4C] of a latent [B,C,h,w], a patch of 2 x 2 each."""
    b, c, h, w = latent.shape
    patches = latent.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """Return the latent [B,C,h,w], as large as `like`, of tokens [B,L,4C]."""
    b, c, h, w = like.shape
    patches = tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c, h, w)


def with_prompt(cond: Conditioning) -> tuple[slice, int]:
    """Return the rows that the ControlNet sees, and how often its residuals are needed.

    For both branches of guidance it reads the prompt, and runs once, as in diffusers' pipelines of FLUX and
    Qwen-Image.
    """
    return (slice(len(cond.hidden) // 2, None), 2) if cond.paired else (slice(None), 1)


def repeated(residuals: Sequence[Tensor] | None, times: int) -> list[Tensor] | None:
    """Return residuals [B,...] for `times` as many rows."""
    if residuals is None:
        return None
    return [torch.cat([residual] * times) for residual in residuals]


def residuals_taken(blocks: int, residuals: int) -> int:
    """Return how many of a ControlNet's residuals the blocks of FLUX's or Qwen-Image's base take."""
    return math.ceil(blocks / math.ceil(blocks / residuals)) if residuals else 0


def unused(network: nn.Module, last: int) -> list[str]:
    """Return the modules that nothing depends on where block `last` is the last one that is read.

    These are what makes its text features, all later blocks and the residuals of these.
    """
    count = len(network.transformer_blocks)  # type: ignore[arg-type]
    names = [f"transformer_blocks.{last}.{module}" for module in TEXT_PARTS]
    for i in range(last + 1, count):
        names += [f"transformer_blocks.{i}", f"controlnet_blocks.{i}"]
    there = {name for name, _ in network.named_modules()}
    return [name for name in names if name in there]
