"""What diffusers' own pipelines paint with flow bases, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rfft.types import Batch


def stock_flow(
    pipe: Any,
    batch: Batch,
    control: Tensor,
    steps: int,
    guidance_scale: float,
    with_gradient: bool = False,
    **more: Any,
) -> Tensor:
    """What the base's ControlNet pipeline makes of the batch's embeddings and noise, with latent inpainting.

    `control`: the ControlNet's picture [B,3,H,W], in [-1,1]; `more`: arguments of the pipeline, among them
    output_type, latent unless said otherwise.
    """
    pipe.set_progress_bar_config(disable=True)
    arguments = PIPELINES[type(pipe).__name__](batch)
    call = type(pipe).__call__
    if with_gradient:  # as it stands, but for its decorator torch.no_grad
        call = call.__wrapped__
    return call(
        pipe,
        **{
            "control_image": control,
            "num_inference_steps": steps,
            "callback_on_step_end": keep_product(batch),
            "output_type": "latent",
            "guidance_scale": guidance_scale,
            **arguments,
            **more,
        },
    ).images


def keep_product(batch: Batch) -> Callable[..., dict[str, Tensor]]:
    """A callback for a pipeline without inpainting: what StableDiffusion3InpaintPipeline does after a step."""

    def after_step(pipe: Any, i: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        kept, steps = batch.x_o, pipe.scheduler.timesteps
        if i < len(steps) - 1:
            kept = pipe.scheduler.scale_noise(kept, steps[i + 1 : i + 2], batch.noise)
        return {"latents": (1 - batch.mask) * values["latents"] + batch.mask * kept}

    return after_step


def sd3_arguments(batch: Batch) -> dict[str, Any]:
    """Embeddings and noise."""
    return {
        "prompt_embeds": batch.z.hidden,
        "negative_prompt_embeds": batch.null.hidden,
        "pooled_prompt_embeds": batch.z.added["pooled"],
        "negative_pooled_prompt_embeds": batch.null.added["pooled"],
        "latents": batch.noise,
    }


PIPELINES: dict[str, Callable[[Batch], dict[str, Any]]] = {
    "StableDiffusion3ControlNetPipeline": sd3_arguments,
    "StableDiffusion3ControlNetInpaintingPipeline": sd3_arguments,
}
