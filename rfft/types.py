"""Data passed between the parts of RFFT.

Shapes: B batch, C channels, h w latent, H W pixels, L tokens, D features, S sampling steps, K trained steps.
Pictures are in [0, 1]; latents are already multiplied by the VAE's scaling factor.
Every noise process is written x_t = a_t x0 + s_t eps: a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar) for DDPM,
a = 1 - sigma, s = sigma for a rectified flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

LABELS = ("available", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination")
COARSE_LABELS = ("available", "unavailable")

Index = slice | Tensor | list[int]
Size = int | tuple[int, int]  # of a picture in pixels: the side of a square, or height and width
T = TypeVar("T", bound="TensorFields")


def label_names(count: int) -> tuple[str, ...]:
    """Return what the `count` outputs of a reward network stand for; the first is always "available"."""
    return COARSE_LABELS if count == len(COARSE_LABELS) else LABELS


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def size_of(pictures: Tensor) -> Size:
    """Return the size of pictures [...,H,W]."""
    height, width = pictures.shape[-2:]
    return height if height == width else (height, width)


def _map(value: Any, function: Any) -> Any:
    """Apply function to every tensor of a dataclass or mapping; texts and flags stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, TensorFields):
        return type(value)(**{f.name: _map(getattr(value, f.name), function) for f in fields(value)})  # type: ignore[arg-type]
    return value


class TensorFields:
    """A mixin for dataclasses of tensors, which moves them or takes some of their samples."""

    def to(self: T, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> T:
        """Return the same on `device`; `dtype` is for the floating-point tensors only."""
        return _map(self, lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def index(self: T, i: Index) -> T:
        """Return samples i of the batch: a slice, list or index tensor, so that the batch dimension stays."""
        return _map(self, lambda t: t[i])


@dataclass
class Conditioning(TensorFields):
    """An encoded prompt: what the denoiser attends to."""

    hidden: Tensor  # [B,L,D]
    added: dict[str, Tensor] = field(default_factory=dict)  # empty for SD 1.5; text_embeds, time_ids for SDXL
    paired: bool = False  # is the first half the null prompts of the second half, for the same x?

    @classmethod
    def pair(cls, null: Conditioning, z: Conditioning) -> Conditioning:
        """Return both branches of classifier-free guidance, null's first, for one batched call."""
        return replace(null.cat(z), paired=True)

    def cat(self, other: Conditioning) -> Conditioning:
        """Return this batch followed by the other one."""
        added = {name: torch.cat([tensor, other.added[name]]) for name, tensor in self.added.items()}
        return Conditioning(torch.cat([self.hidden, other.hidden]), added)


@dataclass
class Batch(TensorFields):
    """B products with prompts; all of it is computed once per product and prompt, not once per step."""

    z: Conditioning  # the prompt
    null: Conditioning  # the empty or negative prompt
    # c: Canny edges of the product [B,3,H,W], three equal channels, or what the family makes of them.
    edges: Tensor
    product: Tensor  # [B,4,H,W] RGBA, straight alpha, already placed on the canvas
    x_o: Tensor  # [B,C,h,w] the product's latent
    mask: Tensor  # [B,1,h,w] M, 1 inside the product
    noise: Tensor  # [B,C,h,w] x_T, standard normal, drawn by global sample index
    sample: Tensor  # [B] number of the sample in its data set
    captions: list[str]  # B descriptions of the products, which rewards may read
    prompts: list[str]  # B prompts, as texts

    def __len__(self) -> int:
        return self.noise.shape[0]

    def index(self, i: Index) -> Batch:
        """Return samples i, their texts too."""
        rows = range(len(self))[i] if isinstance(i, slice) else i.tolist() if isinstance(i, Tensor) else i
        captions, prompts = ([texts[row] for row in rows] for texts in (self.captions, self.prompts))
        return replace(super().index(i), captions=captions, prompts=prompts)


class NoiseLevel(NamedTuple):
    """How much noise is in x = a x0 + s eps; 0-dimensional tensors."""

    t: Tensor  # what the network is told: a timestep, or a flow's sigma times 1000
    a: Tensor
    s: Tensor
    keeps_norm: bool = False  # see Schedule


@dataclass(frozen=True)
class Schedule(TensorFields):
    """S sampling steps, noisiest first; all tensors are [S]."""

    timesteps: Tensor
    a: Tensor  # at each step
    s: Tensor
    a_next: Tensor  # after each step
    s_next: Tensor
    keeps_norm: bool = (
        False  # has guided velocity the norm, token by token, that it has for the prompt alone?
    )

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, i: int) -> NoiseLevel:
        """Return the noise level at step i."""
        return NoiseLevel(self.timesteps[i], self.a[i], self.s[i], self.keeps_norm)


class Denoised(NamedTuple):
    """What a denoiser makes of x: the clean latent and the noise that it sees in it, [B,C,h,w] each."""

    x0: Tensor  # x0_hat
    eps: Tensor  # eps_hat


@dataclass
class Prediction:
    """What one guided forward says at one sampling step."""

    guided: Denoised  # x0_hat and eps_hat with classifier-free guidance
    g: Tensor  # [B,C,h,w] guidance direction (7); empty where nobody asked, and null was not computed


@dataclass
class StepOutput:
    """What a training step did, detached; scalars are means over the batch and the trained steps."""

    loss: Tensor  # F_total
    reg: Tensor  # L_CC, L_KL or 0
    images: Tensor  # [B,3,H,W] of the last trained step
    pictures: int  # pictures that the rewards judged
    forwards: int  # batched denoiser calls made
    scalars: dict[str, Tensor] = field(default_factory=dict)  # of the rewards: f_ac, available, ...
    per_k: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # by trained step, then by name


class Denoise(Protocol):
    """x [B,C,h,w] at a noise level, with prompts and edges -> x0_hat and eps_hat, in x's precision."""

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised: ...


class Reward(Protocol):
    """Something that judges pictures; anybody's own has this form.

    image [B,3,H,W] in [0,1] of the batch's products -> a loss per picture [B] (less is better), and scalars
    to be logged (means over the pictures). It is taken to be differentiable in the pictures unless it has an
    attribute `differentiable` that is false.
    """

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


class Policy(Protocol):
    """The generator as the training step sees it (models.bundle.Bundle is one)."""

    @property
    def denoiser(self) -> Denoise: ...

    def merged(self) -> AbstractContextManager[None]: ...

    def rolling(self) -> AbstractContextManager[Denoise]: ...

    def reference(self) -> AbstractContextManager[None]: ...

    def decode(self, latent: Tensor) -> Tensor: ...

    def preview(self, latent: Tensor) -> Tensor: ...
