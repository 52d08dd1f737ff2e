"""FLUX.1 Fill: the flow of flux.py whose transformer itself is shown the product and what is to be painted.

There is no ControlNet: diffusers has no pipeline that gives Fill one, and none was published for it.

Shapes: B batch, C latent channels, L tokens, f pixels of a latent's side, h w latent, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import FluxFillPipeline
from torch import Tensor

from rfft.errors import require
from rfft.models.families.flow import pack, unpack, unused
from rfft.models.families.flux import PATCH, Flux, FluxDenoiser
from rfft.models.parameterization import from_velocity
from rfft.types import Conditioning, Denoised, NoiseLevel


class FluxFillDenoiser(FluxDenoiser):
    """See FlowDenoiser; what other bases have of edges is the product here, and where it is, [B,L,D]."""

    def forward(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        arguments = self._arguments(self.transformer, x, level, cond)
        seen = torch.cat([arguments.pop("hidden_states"), edges], dim=-1)
        velocity = self.transformer(hidden_states=seen, **arguments)[0]
        return from_velocity(x, unpack(velocity.to(x.dtype), x), level.s)


class FluxFill(Flux):
    """A base that FluxFillPipeline loads; latent inpainting keeps the product exactly, as everywhere."""

    denoiser_type = FluxFillDenoiser
    pipeline = FluxFillPipeline
    controlnet_kind = None

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        return pipeline == "FluxFillPipeline"

    def check_shapes(self) -> None:
        """Raise UserError unless the transformer takes a picture's latents twice, and the mask's pixels."""
        takes = self.pipe.transformer.config.in_channels
        fitting = PATCH * (2 * self.latent_channels + self.latent_factor**2)
        require(
            takes == fitting,
            f"the bundle's transformer takes {takes} channels, FLUX.1 Fill's with this VAE {fitting}",
        )

    def idle(self, name: str) -> list[str]:
        """Return what makes text features of which nothing is read."""
        transformer = self.pipe.transformer
        blocks = len(transformer.transformer_blocks)
        return [] if len(transformer.single_transformer_blocks) else unused(transformer, blocks - 1)

    @torch.no_grad()
    def encode_control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return tokens [B,L,4(C+f^2)]: the latent of the product on grey, and the pixels to be painted."""
        painted = (product[:, 3:] < 0.5).to(product.dtype)
        grey = (1 - painted) * product[:, :3] + painted / 2
        return torch.cat(
            [pack(self.encode_image(grey)), pack(F.pixel_unshuffle(painted, self.latent_factor))], -1
        )
