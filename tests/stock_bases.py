"""What diffusers' own pipelines paint with the newer bases, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionXLControlNetInpaintPipeline
from torch import Tensor

from rfft.models.families.flow import pack, unpack
from rfft.models.families.flux import CANNY_MODE, FluxDenoiser
from rfft.models.families.kolors import project_text
from rfft.types import Batch


def stock_latent(
    pipe: Any,
    batch: Batch,
    control: Tensor,
    steps: int,
    guidance_scale: float,
    after: Callable[[int, Tensor], Tensor] | None = None,
    **more: Any,
) -> Tensor:
    """What the base's ControlNet pipeline makes of the batch's embeddings and noise, with latent inpainting.

    `control`: the ControlNet's picture [B,3,H,W]; `after`: is given each step's latents, which have a
    gradient then, and says with which to go on; `more`: arguments of the pipeline.
    """
    pipe.set_progress_bar_config(disable=True)
    arguments = {"control_image": control} | PIPELINES[type(pipe).__name__](batch)
    if type(pipe).__name__ == "FluxFillPipeline":
        del arguments["control_image"]  # it has no ControlNet
    elif getattr(pipe.controlnet, "union", False):
        arguments["control_mode"] = [CANNY_MODE] * len(batch)
    if "true_cfg_scale" in signature(type(pipe).__call__).parameters:
        arguments["true_cfg_scale"] = guidance_scale
    call = type(pipe).__call__
    if after is not None:
        call = call.__wrapped__  # as it stands, but for its decorator torch.no_grad
        keep = arguments.get("callback_on_step_end", lambda pipe, i, t, values: values)

        def kept(pipe: Any, i: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents = keep(pipe, i, t, values)["latents"]
            if latents.ndim == 3:
                return {"latents": pack(after(i, unpack(latents, batch.noise)))}
            return {"latents": after(i, latents)}

        more["callback_on_step_end"] = kept
    latents = call(
        pipe,
        **{
            "num_inference_steps": steps,
            "output_type": "latent",
            "guidance_scale": guidance_scale,
            **arguments,
            **more,
        },
    ).images
    return unpack(latents, batch.noise) if latents.ndim == 3 else latents


def keep_product(batch: Batch) -> Callable[..., dict[str, Tensor]]:
    """A callback for pipelines without inpainting: what StableDiffusion3InpaintPipeline does after steps."""

    def after_step(pipe: Any, i: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        kept, steps, latents = batch.x_o, pipe.scheduler.timesteps, values["latents"]
        if i < len(steps) - 1:
            kept = pipe.scheduler.scale_noise(kept, steps[i + 1 : i + 2], batch.noise)
        if latents.ndim == 4:
            return {"latents": (1 - batch.mask) * latents + batch.mask * kept}
        return {"latents": pack((1 - batch.mask) * unpack(latents, kept) + batch.mask * kept)}

    return after_step


def _sd3(batch: Batch) -> dict[str, Any]:
    """The canny pipeline has no latent inpainting."""
    return sd3_arguments(batch) | {"callback_on_step_end": keep_product(batch)}


def sd3_arguments(batch: Batch) -> dict[str, Any]:
    """Embeddings and noise."""
    return {
        "prompt_embeds": batch.z.hidden,
        "negative_prompt_embeds": batch.null.hidden,
        "pooled_prompt_embeds": batch.z.added["pooled"],
        "negative_pooled_prompt_embeds": batch.null.added["pooled"],
        "latents": batch.noise,
    }


def _sdxl(batch: Batch) -> dict[str, Any]:
    return {
        "prompt_embeds": batch.z.hidden,
        "negative_prompt_embeds": batch.null.hidden,
        "pooled_prompt_embeds": batch.z.added["text_embeds"],
        "negative_pooled_prompt_embeds": batch.null.added["text_embeds"],
        "image": 2 * batch.product[:, :3] * batch.product[:, 3:] - 1,
        "mask_image": F.interpolate(1 - batch.mask, batch.product.shape[-1]),
        "latents": batch.noise,
        "controlnet_conditioning_scale": 1.0,
        "strength": 1.0,
    }


def flux_arguments(batch: Batch) -> dict[str, Any]:
    """Embeddings."""
    size = batch.product.shape[-1]
    return {
        "prompt_embeds": batch.z.hidden,
        "pooled_prompt_embeds": batch.z.added["pooled"],
        "height": size,
        "width": size,
    }


def _flux(batch: Batch) -> dict[str, Any]:
    """The guidance that it is told; there is no second branch."""
    return flux_arguments(batch) | {
        "guidance_scale": FluxDenoiser.guidance,
        "image": batch.product[:, :3] * batch.product[:, 3:],
        "mask_image": F.interpolate(1 - batch.mask, batch.product.shape[-1]),
        "latents": batch.noise,
        "strength": 1.0,
    }


def _flux_fill(batch: Batch) -> dict[str, Any]:
    """Pictures in [0, 1]; it keeps no product, but is shown it."""
    kept = (batch.product[:, 3:] >= 0.5).float()
    return flux_arguments(batch) | {
        "guidance_scale": FluxDenoiser.guidance,
        "image": batch.product[:, :3],
        "mask_image": 1 - kept,
        "latents": pack(batch.noise),
        "callback_on_step_end": keep_product(batch),
    }


def _flux_guided(batch: Batch) -> dict[str, Any]:
    """With a second branch beside the guidance that it is told."""
    return flux_arguments(batch) | {
        "guidance_scale": FluxDenoiser.guidance,
        "negative_prompt_embeds": batch.null.hidden,
        "negative_pooled_prompt_embeds": batch.null.added["pooled"],
        "latents": pack(batch.noise),
        "callback_on_step_end": keep_product(batch),
    }


def qwen_arguments(batch: Batch) -> dict[str, Any]:
    """Embeddings and noise."""
    size = batch.product.shape[-1]
    return {
        "prompt_embeds": batch.z.hidden,
        "prompt_embeds_mask": batch.z.added["mask"],
        "negative_prompt_embeds": batch.null.hidden,
        "negative_prompt_embeds_mask": batch.null.added["mask"],
        "latents": pack(batch.noise),
        "height": size,
        "width": size,
    }


def _qwen(batch: Batch) -> dict[str, Any]:
    """The canny pipeline has no latent inpainting."""
    return qwen_arguments(batch) | {"callback_on_step_end": keep_product(batch)}


def inpainting(pipe: Any, controlnet: Any = None) -> Any:
    """A pipeline that inpaints with a ControlNet; for Kolors that of SDXL, which takes its embeddings.

    `controlnet`: Kolors' own, whose projection of texts diffusers never applies.
    """
    if type(pipe).__name__ != "KolorsPipeline":
        return pipe
    if not controlnet._forward_pre_hooks:
        controlnet.register_forward_pre_hook(project_text, with_kwargs=True)
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return StableDiffusionXLControlNetInpaintPipeline(
        vae=pipe.vae,
        unet=pipe.unet,
        controlnet=controlnet,
        scheduler=scheduler,
        **texts,
        add_watermarker=False,
    )


PIPELINES: dict[str, Callable[[Batch], dict[str, Any]]] = {
    "FluxControlNetInpaintPipeline": _flux,
    "FluxControlNetPipeline": _flux_guided,
    "FluxFillPipeline": _flux_fill,
    "QwenImageControlNetPipeline": _qwen,
    "QwenImageControlNetInpaintPipeline": qwen_arguments,
    "StableDiffusion3ControlNetPipeline": _sd3,
    "StableDiffusion3ControlNetInpaintingPipeline": sd3_arguments,
    "StableDiffusionXLControlNetInpaintPipeline": _sdxl,
}
