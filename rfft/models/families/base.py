"""What RFFT asks of a base; a family of bases answers it in one file (models/families/sd.py is one).

Shapes: B batch, C latent channels, h w latent, H W pixels. Pictures are in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rfft.errors import UserError
from rfft.types import Conditioning, Schedule, Size


class Family(ABC):
    """A loaded base: its frozen networks and how they are called."""

    part: ClassVar[str]  # attribute of `denoiser` that its LoRA goes to, as LoRA files name it: unet
    kohya_prefix: ClassVar[str] = ""  # of its modules in kohya's form; by default lora_ and the part
    units: ClassVar[tuple[str, ...]] = ()  # class names of the blocks that FSDP2 splits
    pipe: Any = None  # the diffusers pipeline that holds the networks, where there is one
    hint: str = ""  # how its pipeline has to be called to paint RFFT's picture, where one would not guess
    denoiser: nn.Module  # a types.Denoise with `part`, and `controlnet` if there is one, as submodules
    encodes_control: bool = False  # is encode_control() more than the edges?
    latent_factor: int  # pixels per latent element along each side
    latent_channels: int  # C

    @classmethod
    def recognizes(cls, pipeline: str) -> bool:
        """Return whether a base whose model_index.json names this pipeline class is of this family."""
        return False

    @classmethod
    @abstractmethod
    def load(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> Family:
        """Load a base from a folder or hub id; `controlnet`: folder or id, for a base that has none.

        Raises OSError or ValueError where it cannot be loaded, UserError where its parts do not fit.
        """

    @classmethod
    def skeleton(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> Family:
        """Load a base to count what it costs; where that is possible, without weights, on the meta device."""
        return cls.load(source, controlnet, dtype)

    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Return all networks of the base, those inside `denoiser` too."""

    def text_networks(self) -> list[nn.Module]:
        """Return those that encode_prompts() alone needs; a GPU has them no longer than that takes."""
        return []

    @abstractmethod
    def schedule(self, steps: int, size: Size | None) -> Schedule:
        """Return the sampling steps that diffusers would make for pictures of that size.

        A size of None will do where it does not matter. Raises UserError for too many steps.
        """

    @abstractmethod
    def encode_prompts(self, prompts: list[str], size: Size) -> tuple[Conditioning, list[str]]:
        """Return features of B prompts for pictures of that size, and what was cut off each."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the latent [B,C,h,w], always the same one, of pixels [B,3,H,W]."""

    def encode_control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return what the ControlNet takes, made of edges [B,3,H,W] and the product [B,4,H,W] on its canvas.

        It is made once per product. By default the edges; a family that makes anything else of them also
        sets `encodes_control`.
        """
        return edges

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Return pixels [B,3,H,W], not clamped, of latent [B,C,h,w]."""

    @abstractmethod
    def blank_conditioning(self, count: int) -> Conditioning:
        """Return features of the right shape for `count` prompts, to count what a forward costs."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of denoiser and decoder in the backward pass."""
        raise UserError(f"{type(self).__name__} knows no gradient checkpointing: leave it out")

    def idle(self, name: str) -> Sequence[str]:
        """Return the modules within the part, or "controlnet", whose weights no gradient can reach.

        Nothing is trained there: processes that share a run wait for the gradient of all that is.
        """
        return ()

    def kohya_name(self, module: str) -> str:
        """Return the name of a denoiser's module as kohya's sd-scripts writes it, dots for underscores."""
        return module
