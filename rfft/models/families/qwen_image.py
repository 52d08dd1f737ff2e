"""Qwen-Image: a flow of a transformer + ControlNet (canny, or inpainting) + latent inpainting.

Shapes: B batch, C latent channels, L tokens, D text features, h w latent, H W pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

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
from rfft.models.families.pipeline import check_fit, cut_off
from rfft.models.parameterization import from_velocity
from rfft.types import Conditioning, Denoised, NoiseLevel, Size

TOKENS = 512  # of a prompt; shorter ones are padded, and masked
PATCH = 4  # latents, in a token


class QwenImageDenoiser(FlowDenoiser):
    """See FlowDenoiser; of diffusers' QwenImageTransformer2DModel and QwenImageControlNetModel."""

    def forward(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        rows, times = with_prompt(cond)
        residuals = self.controlnet(
            controlnet_cond=edges[rows], **_arguments(x[rows], level, cond.index(rows))
        )
        velocity = self.transformer(
            controlnet_block_samples=repeated(residuals, times), **_arguments(x, level, cond)
        )[0]
        return from_velocity(x, unpack(velocity.to(x.dtype), x), level.s)


def _arguments(x: Tensor, level: NoiseLevel, cond: Conditioning) -> dict[str, Any]:
    """Return what transformer and ControlNet are called with alike."""
    h, w = x.shape[-2:]
    return {
        "hidden_states": pack(x),
        "timestep": level.t.expand(len(x)) / 1000,
        "encoder_hidden_states": cond.hidden,
        "encoder_hidden_states_mask": cond.added["mask"],
        "img_shapes": [(1, h // 2, w // 2)] * len(x),
        "return_dict": False,
    }


class QwenImage(FlowFamily):
    """A base that QwenImageControlNetPipeline loads."""

    units = ("QwenImageTransformerBlock",)
    kohya_prefix = "lora_unet"  # musubi-tuner's, which ComfyUI and diffusers read
    keeps_norm = True
    dynamic_shift = True
    pipeline = QwenImageControlNetPipeline
    denoiser_kind = QwenImageTransformer2DModel
    controlnet_kind = QwenImageControlNetModel
    vae_kind = AutoencoderKLQwenImage
    channels_key = "z_dim"
    text_encoders: ClassVar[dict[str, Any]] = {"text_encoder": Qwen2_5_VLForConditionalGeneration}
    required = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        """Take the diffusers pipeline."""
        super().__init__(pipe, controlnet)
        _check_shapes(pipe)
        self.denoiser = QwenImageDenoiser(pipe.transformer, self.controlnet)

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        own = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetInpaint")
        return pipeline in [f"QwenImage{kind}Pipeline" for kind in own]

    def idle(self, name: str) -> list[str]:
        """Return what makes text features of which nothing is read, and residuals that nobody takes."""
        transformer, network = self.pipe.transformer, getattr(self.denoiser, name)
        blocks, own = len(transformer.transformer_blocks), len(network.transformer_blocks)
        return unused(network, (blocks if name == self.part else residuals_taken(blocks, own)) - 1)

    # ---- texts ----

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return the features that the pipeline's own encode_prompt gives, padded, and where they are."""
        pipe, device = self.pipe, self.pipe.text_encoder.device
        hidden, mask = pipe.encode_prompt(prompts, device, max_sequence_length=TOKENS)
        if mask is None:  # all are of one length
            mask = hidden.new_ones(hidden.shape[:2])
        missing = TOKENS - hidden.shape[1]
        padded = F.pad(hidden, (0, 0, 0, missing))
        added = {"mask": F.pad(mask, (0, missing)).bool()}
        return Conditioning(padded, added), cut_off(pipe.tokenizer, prompts, TOKENS, ends=0)

    def blank_conditioning(self, count: int) -> Conditioning:
        width = self.pipe.transformer.config.joint_attention_dim
        return Conditioning(
            torch.zeros(count, TOKENS, width), {"mask": torch.ones(count, TOKENS, dtype=torch.bool)}
        )

    # ---- pictures: the autoencoder is one of films, of one frame here ----

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        posterior = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)[:, :, None]).latent_dist
        mean, std = self._statistics(pixels)
        return (posterior.mode()[:, :, 0].to(pixels.dtype) - mean) / std

    def decode(self, latent: Tensor) -> Tensor:
        mean, std = self._statistics(latent)
        frames = (latent * std + mean).to(self.vae.dtype)[:, :, None]
        pixels = self.vae.decode(frames, return_dict=False)[0][:, :, 0]
        return pixels.to(latent.dtype) / 2 + 0.5

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latent's channels, [C,1,1] each."""
        config = self.vae.config
        mean, std = like.new_tensor(config.latents_mean), like.new_tensor(config.latents_std)
        return mean[:, None, None], std[:, None, None]

    @torch.no_grad()
    def encode_control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return the tokens [B,L,4C] of the edges' latent; for an inpainting ControlNet 4 more channels.

        These say what is kept, and the latent is the product's, black elsewhere.
        """
        if not self.controlnet.config.extra_condition_channels:
            return pack(self.encode_image(edges))
        return pack(self._encode_kept(product))


def _check_shapes(pipe: Any) -> None:
    """Raise UserError unless transformer, VAE and ControlNet belong together."""
    base, controlnet = pipe.transformer.config, pipe.controlnet.config
    tokens = PATCH * pipe.vae.config.z_dim
    require(
        base.in_channels == tokens,
        f"the bundle's transformer takes {base.in_channels} channels, a patch has {tokens}: give Qwen-Image "
        "itself, not a model that edits",
    )
    require(
        controlnet.extra_condition_channels in (0, PATCH),
        f"the ControlNet takes {controlnet.extra_condition_channels} channels beside a patch; known are 0 "
        f"(edges) and {PATCH} (inpainting): name another one with model.controlnet",
    )
    check_fit(
        base,
        controlnet,
        (
            ("in_channels", "channels of a patch"),
            ("num_attention_heads", "attention heads"),
            ("attention_head_dim", "features of a head"),
            ("joint_attention_dim", "text features"),
        ),
    )
