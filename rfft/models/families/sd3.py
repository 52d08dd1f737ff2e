"""Stable Diffusion 3 and 3.5: a flow of an MM-DiT + ControlNet (canny, or inpainting) + latent inpainting.

Shapes: B batch, C latent channels, L tokens, D text features, P pooled ones, h w latent, H W pixels.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from diffusers import (
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
)
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from rfft.errors import UserError, require
from rfft.models.families.flow import FlowDenoiser, FlowFamily, unused
from rfft.models.families.pipeline import check_fit, cut_off, quiet
from rfft.models.parameterization import from_velocity
from rfft.types import Conditioning, Denoised, NoiseLevel, Size

TOKENS = 256  # that T5 reads; CLIP's encoders read fewer


class SD3Denoiser(FlowDenoiser):
    """See FlowDenoiser; of diffusers' SD3Transformer2DModel and SD3ControlNetModel."""

    def __init__(self, transformer: Any, controlnet: Any) -> None:
        """Take the MM-DiT and its ControlNet."""
        super().__init__(transformer, controlnet)
        # The ControlNets of SD 3.5 large have no patch embedding: the base's is theirs, frozen.
        self.patches = None if controlnet.config.use_pos_embed else copy.deepcopy(transformer.pos_embed)

    def forward(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        config, t = self.controlnet.config, level.t.expand(len(x))
        pooled = cond.added["pooled"]
        residuals = self.controlnet(
            x if self.patches is None else self.patches(x),
            controlnet_cond=edges,
            encoder_hidden_states=None if config.joint_attention_dim is None else cond.hidden,
            pooled_projections=torch.zeros_like(pooled)
            if config.force_zeros_for_pooled_projection
            else pooled,
            timestep=t,
            return_dict=False,
        )[0]
        velocity: Tensor = self.transformer(
            x, cond.hidden, pooled, t, block_controlnet_hidden_states=residuals, return_dict=False
        )[0]
        return from_velocity(x, velocity.to(x.dtype), level.s)


class StableDiffusion3(FlowFamily):
    """A base that StableDiffusion3ControlNetPipeline loads; T5 may be missing."""

    units = ("JointTransformerBlock", "SD3SingleTransformerBlock")
    pipeline = StableDiffusion3ControlNetPipeline
    denoiser_kind = SD3Transformer2DModel
    controlnet_kind = SD3ControlNetModel
    text_encoders: ClassVar[dict[str, Any]] = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    required = (
        *("transformer", "vae", "scheduler"),
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    )
    optional = ("text_encoder_3", "tokenizer_3")

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        """Take the diffusers pipeline."""
        super().__init__(pipe, controlnet)
        _check_shapes(pipe)
        if not self.controlnet.config.use_pos_embed:
            self.controlnet.pos_embed = None  # the pipeline's copy; the denoiser has one that is not trained
        self.denoiser = SD3Denoiser(pipe.transformer, self.controlnet)
        if not self._t5_tokens():
            self.hint = "It was made without T5: paint with max_sequence_length=0."
        quiet(pipe)

    def idle(self, name: str) -> list[str]:
        """Return what makes text features of which nothing is read, and blocks whose residuals nobody takes.

        The last block of the base has no use for text, and takes no residual.
        """
        transformer, blocks = self.pipe.transformer, len(self.pipe.transformer.transformer_blocks)
        if name == self.part:
            return unused(transformer, blocks - 1)
        # As the transformer's forward deals out the residuals.
        each = blocks / len(self.controlnet.transformer_blocks)
        return unused(self.controlnet, max(int(i / each) for i in range(blocks - 1)))

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        return pipeline.startswith("StableDiffusion3")

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return the features that the pipeline's own encode_prompt gives."""
        pipe = self.pipe
        hidden, _, pooled, _ = pipe.encode_prompt(
            prompts,
            None,
            None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._t5_tokens(),
        )
        if pipe.text_encoder_3 is None:
            cut = cut_off(pipe.tokenizer, prompts, pipe.tokenizer_max_length)
        else:
            cut = cut_off(pipe.tokenizer_3, prompts, TOKENS)
        return Conditioning(hidden, {"pooled": pooled}), cut

    def blank_conditioning(self, count: int) -> Conditioning:
        config = self.pipe.transformer.config
        tokens = self.pipe.text_encoder.config.max_position_embeddings + self._t5_tokens()
        hidden = torch.zeros(count, tokens, config.joint_attention_dim)
        return Conditioning(hidden, {"pooled": torch.zeros(count, config.pooled_projection_dim)})

    def _t5_tokens(self) -> int:
        """Return how many tokens of T5, or zeros in their place, the transformer sees.

        A base that is no wider than CLIP's features, which others pad to T5's width, was made without T5.
        """
        pipe = self.pipe
        clip = sum(network.config.hidden_size for network in (pipe.text_encoder, pipe.text_encoder_2))
        made_without = pipe.text_encoder_3 is None and pipe.transformer.config.joint_attention_dim == clip
        return 0 if made_without else TOKENS

    @torch.no_grad()
    def encode_control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return the latent [B,C,h,w] of the edges; for an inpainting ControlNet [B,C+1,h,w] of the product.

        As in StableDiffusion3ControlNetPipeline and StableDiffusion3ControlNetInpaintingPipeline.
        """
        config = self.controlnet.config
        if config.extra_conditioning_channels:
            return self._encode_kept(product)
        if not config.use_pos_embed:
            edges = _edges_of_large(edges)
        # InstantX's ControlNets for SD 3 were trained without the shift.
        return self._encode(edges, 0.0 if config.force_zeros_for_pooled_projection else self._vae_shift())


def _edges_of_large(edges: Tensor) -> Tensor:
    """Return edges [B,3,H,W] as Stability's canny ControlNet for SD 3.5 large wants them before the VAE.

    Its preprocessing in their sd3.5 repository: 255 / 2 x + 1 / 2, in place of 2 x - 1, which follows here.
    """
    return (edges * 255 * 0.5 + 0.5 + 1) / 2


def _check_shapes(pipe: Any) -> None:
    """Raise UserError unless transformer, VAE and ControlNet belong together."""
    base, controlnet = pipe.transformer.config, pipe.controlnet.config
    channels = pipe.vae.config.latent_channels
    require(
        base.in_channels == channels,
        f"the bundle's transformer takes {base.in_channels} channels, its VAE makes {channels}: give a base "
        "that takes nothing but the latent",
    )
    if controlnet.extra_conditioning_channels not in (0, 1):
        raise UserError(
            f"the ControlNet takes {controlnet.extra_conditioning_channels} channels beside a latent; known "
            "are 0 (edges) and 1 (inpainting): name another one with model.controlnet"
        )
    check_fit(
        base,
        controlnet,
        (
            ("in_channels", "latent channels"),
            ("num_attention_heads", "attention heads"),
            ("attention_head_dim", "features of a head"),
            ("joint_attention_dim", "text features"),
            ("pooled_projection_dim", "pooled text features"),
        ),
    )
