"""FLUX.1: a flow of a transformer with distilled guidance + ControlNet (canny) + latent inpainting.

Shapes: B batch, C latent channels, L tokens, D text features, P pooled ones, h w latent, H W pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FluxControlNetInpaintPipeline, FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from rfft.errors import require
from rfft.models.families.flow import (
    FlowDenoiser,
    FlowFamily,
    pack,
    repeated,
    residuals_taken,
    unpack,
    unused,
    with_prompt,
)
from rfft.models.families.pipeline import check_fit, cut_off, quiet
from rfft.models.parameterization import from_velocity
from rfft.types import Conditioning, Denoised, NoiseLevel, Size

TOKENS = 512  # that T5 reads
PATCH = 4  # latents, in a token
CANNY_MODE = 0  # of InstantX's union ControlNet


class FluxDenoiser(FlowDenoiser):
    """See FlowDenoiser; of diffusers' FluxTransformer2DModel and FluxControlNetModel."""

    guidance = 3.5  # the scale that FLUX.1-dev is told: its guidance is distilled (model.embedded_guidance)

    def forward(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        rows, times = with_prompt(cond)
        control = self._arguments(self.controlnet, x[rows], level, cond.index(rows))
        if self.controlnet.union:
            control["controlnet_mode"] = torch.full((len(x[rows]), 1), CANNY_MODE, device=x.device)
        joint, single = self.controlnet(controlnet_cond=edges[rows], **control)
        velocity = self.transformer(
            controlnet_block_samples=repeated(joint, times),
            controlnet_single_block_samples=repeated(single, times),
            controlnet_blocks_repeat=self.controlnet.input_hint_block is not None,
            **self._arguments(self.transformer, x, level, cond),
        )[0]
        return from_velocity(x, unpack(velocity.to(x.dtype), x), level.s)

    def _arguments(self, network: Any, x: Tensor, level: NoiseLevel, cond: Conditioning) -> dict[str, Any]:
        """Return what transformer and ControlNet are called with alike."""
        told = network.config.guidance_embeds
        return {
            "hidden_states": pack(x),
            "timestep": level.t.expand(len(x)) / 1000,
            "guidance": torch.full((len(x),), self.guidance, device=x.device) if told else None,
            "pooled_projections": cond.added["pooled"],
            "encoder_hidden_states": cond.hidden,
            "txt_ids": x.new_zeros(cond.hidden.shape[1], 3),
            "img_ids": _places(x),
            "return_dict": False,
        }


class Flux(FlowFamily):
    """A base that FluxControlNetInpaintPipeline loads: FLUX.1 dev or schnell."""

    units = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    dynamic_shift = True
    denoiser_type: ClassVar[type[FluxDenoiser]] = FluxDenoiser
    pipeline: ClassVar[Any] = FluxControlNetInpaintPipeline
    denoiser_kind = FluxTransformer2DModel
    controlnet_kind: ClassVar[Any] = FluxControlNetModel
    text_encoders: ClassVar[dict[str, Any]] = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    required = (
        *("transformer", "vae", "scheduler"),
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    )

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        """Take the diffusers pipeline."""
        super().__init__(pipe, controlnet)
        self.check_shapes()
        self.denoiser = self.denoiser_type(pipe.transformer, self.controlnet)
        quiet(pipe)

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        own = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")
        return pipeline in [f"Flux{kind}Pipeline" for kind in own]

    def check_shapes(self) -> None:
        """Raise UserError unless transformer, VAE and ControlNet belong together."""
        base, tokens = self.pipe.transformer.config, PATCH * self.latent_channels
        require(
            base.in_channels == tokens,
            f"the bundle's transformer takes {base.in_channels} channels, a patch has {tokens}: FLUX.1 "
            "Control is not supported, give FLUX.1 dev or schnell with a ControlNet, or FLUX.1 Fill",
        )
        _check_fit(base, self.controlnet.config)

    def idle(self, name: str) -> list[str]:
        """Return what makes text features of which nothing is read, and residuals that nobody takes."""
        transformer, network = self.pipe.transformer, getattr(self.denoiser, name)
        joint, single = network.transformer_blocks, network.single_transformer_blocks
        if name == self.part or network.input_hint_block is not None:  # residuals taken in turn
            return [] if single else unused(network, len(joint) - 1)
        taken = residuals_taken(len(transformer.transformer_blocks), len(joint))
        if not single:
            return unused(network, taken - 1)
        names = [f"controlnet_blocks.{i}" for i in range(taken, len(joint))]
        for i in range(residuals_taken(len(transformer.single_transformer_blocks), len(single)), len(single)):
            names += [f"single_transformer_blocks.{i}", f"controlnet_single_blocks.{i}"]
        return names

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return the features that the pipeline's own encode_prompt gives."""
        device = self.pipe.text_encoder.device
        hidden, pooled, _ = self.pipe.encode_prompt(prompts, None, device, max_sequence_length=TOKENS)
        return Conditioning(hidden, {"pooled": pooled}), cut_off(self.pipe.tokenizer_2, prompts, TOKENS)

    def blank_conditioning(self, count: int) -> Conditioning:
        config = self.pipe.transformer.config
        hidden = torch.zeros(count, TOKENS, config.joint_attention_dim)
        return Conditioning(hidden, {"pooled": torch.zeros(count, config.pooled_projection_dim)})

    @torch.no_grad()
    def encode_control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return the tokens [B,L,4C] of the edges' latent; for XLabs' ControlNets the edges in [-1,1]."""
        if self.controlnet.input_hint_block is not None:
            return 2 * edges - 1
        return pack(self.encode_image(edges))


def _places(x: Tensor) -> Tensor:
    """Return the place of each token of x [B,C,h,w] for its rotary embedding [L,3]: 0, row, column."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    place = torch.stack(
        [torch.zeros(h, w, device=x.device), *torch.meshgrid(rows, columns, indexing="ij")], -1
    )
    return place.reshape(h * w, 3).to(x.dtype)


def _check_fit(base: Any, controlnet: Any) -> None:
    """Raise UserError unless the configs of transformer and ControlNet belong together."""
    require(
        controlnet.num_mode is None or controlnet.num_mode > CANNY_MODE,
        "the ControlNet knows no mode for canny edges: name another one with model.controlnet",
    )
    check_fit(
        base,
        controlnet,
        (
            ("in_channels", "channels of a patch"),
            ("num_attention_heads", "attention heads"),
            ("attention_head_dim", "features of a head"),
            ("joint_attention_dim", "text features"),
            ("pooled_projection_dim", "pooled text features"),
        ),
    )
