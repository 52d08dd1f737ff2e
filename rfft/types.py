"""Data passed between the parts of RFFT.

Shapes: B batch, C channels, h w latent, H W pixels, L tokens, D features, S DDIM steps, K trained steps.
Pictures are in [0, 1]; latents are already multiplied by the VAE's scaling factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

LABELS = ("available", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination")
COARSE_LABELS = ("available", "unavailable")

Index = slice | Tensor | list[int]
T = TypeVar("T", bound="TensorFields")


def label_names(count: int) -> tuple[str, ...]:
    """What the `count` outputs of a reward network stand for; the first is always "available"."""
    return COARSE_LABELS if count == len(COARSE_LABELS) else LABELS


def _map(value: Any, function: Any) -> Any:
    """Apply function to every tensor of a dataclass or mapping."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    return type(value)(**{f.name: _map(getattr(value, f.name), function) for f in fields(value)})


class TensorFields:
    """Mixin for dataclasses of tensors: move them, or take some samples of them."""

    def to(self: T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> T:
        """Move to device; dtype is for the floating-point tensors only."""
        return _map(self, lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def index(self: T, i: Index) -> T:
        """Samples i of the batch (a slice, list or index tensor, so that the batch dimension stays)."""
        return _map(self, lambda t: t[i])


@dataclass
class Conditioning(TensorFields):
    """An encoded prompt: what the U-Net attends to."""

    hidden: Tensor  # [B,L,D]
    added: dict[str, Tensor] = field(default_factory=dict)  # empty for SD 1.5; text_embeds, time_ids for SDXL

    def cat(self, other: Conditioning) -> Conditioning:
        """This batch followed by the other one."""
        added = {name: torch.cat([tensor, other.added[name]]) for name, tensor in self.added.items()}
        return Conditioning(torch.cat([self.hidden, other.hidden]), added)


@dataclass
class Batch(TensorFields):
    """B products with prompts; all of it computed once per product and prompt, not once per step."""

    z: Conditioning  # the prompt
    null: Conditioning  # the empty or negative prompt
    edges: Tensor  # [B,3,H,W] c: Canny edges of the product, three equal channels
    product: Tensor  # [B,4,H,W] RGBA, straight alpha, already placed on the canvas
    x_o: Tensor  # [B,4,h,w] the product's latent
    mask: Tensor  # [B,1,h,w] M, 1 inside the product
    caption_ids: Tensor  # [B,L] caption tokens for the reward network
    caption_mask: Tensor  # [B,L]
    noise: Tensor  # [B,4,h,w] x_T, standard normal, drawn by global sample index
    sample: Tensor  # [B] number of the sample in its data set

    def __len__(self) -> int:
        return self.noise.shape[0]


@dataclass(frozen=True)
class Schedule(TensorFields):
    """S DDIM steps, noisiest first."""

    timesteps: Tensor  # [S] integer
    alpha_bar: Tensor  # [S] at each timestep
    alpha_bar_next: Tensor  # [S] after each DDIM step

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass
class Prediction:
    """What one guided forward says at one DDIM step, all [B,4,h,w]."""

    eps: Tensor  # guided noise
    x0: Tensor  # x0_hat, from the guided noise
    g: Tensor  # guidance direction (7)


@dataclass
class StepOutput:
    """What a training step did, detached; scalars are means over the batch and the trained steps."""

    loss: Tensor  # F_total
    f_ac: Tensor
    reg: Tensor  # L_CC, L_KL or 0
    available: Tensor  # share of pictures that the reward network accepts
    logits: Tensor  # [K,B,5]
    images: Tensor  # [B,3,H,W] of the last trained step
    forwards: int  # batched denoiser calls made
    scalars: dict[str, Tensor] = field(default_factory=dict)  # of the rewards beside RFNet


class Denoise(Protocol):
    """Predicted noise [B,4,h,w] for x at timestep t."""

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, edges: Tensor) -> Tensor: ...


class Reward(Protocol):
    """Logits [B,5] (in the order of LABELS; [B,2] of a coarse network) for pictures [B,3,H,W]."""

    def __call__(self, image: Tensor, batch: Batch) -> Tensor: ...


class ExtraReward(Protocol):
    """A reward beside RFNet, frozen and differentiable in the picture; anybody's own has this form.

    image [B,3,H,W] in [0,1], and B captions and prompts -> a loss per sample [B], and scalars to be logged.
    """

    def __call__(
        self, image: Tensor, captions: list[str], prompts: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class ExtraRewards(Protocol):
    """All of them, weighted: a loss per sample [B], and scalars."""

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


class Policy(Protocol):
    """The generator as the training step sees it (models.bundle.Bundle is one)."""

    @property
    def denoiser(self) -> Denoise: ...

    def merged(self) -> AbstractContextManager[None]: ...

    def reference(self) -> AbstractContextManager[None]: ...

    def same_input(self) -> AbstractContextManager[None]: ...

    def decode(self, latent: Tensor) -> Tensor: ...

    def preview(self, latent: Tensor) -> Tensor: ...
