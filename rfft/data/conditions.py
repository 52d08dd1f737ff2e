"""Cached conditions: all that a sample needs besides noise, encoded once per product and prompt.

Shapes: N samples, B batch, S canvas, h w latent.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.data.cutout import edges
from rfft.data.samples import Sample
from rfft.diffusion.compositing import latent_mask
from rfft.models.bundle import Bundle
from rfft.models.layers import composite_on_grey
from rfft.types import Batch, Conditioning

log = logging.getLogger(__name__)
SHOWN = 3  # prompts that were cut, before the rest is only counted


def init_image(product: Tensor) -> Tensor:
    """RGBA [B,4,S,S] -> the picture [B,3,S,S] whose latent is x_o: the product on mid-grey."""
    return composite_on_grey(product)[:, :3]


@torch.no_grad()
def encode_samples(
    bundle: Bundle,
    samples: list[Sample],
    canny: tuple[int, int] = (100, 200),
    batch_size: int = 32,
) -> Batch:
    """The N samples as one Batch on the CPU, with zeros for noise: it is drawn when a sample is used."""
    products = torch.stack([sample.canvas for sample in samples])
    size = products.shape[-1]
    x_o = torch.cat(
        [bundle.encode_image(init_image(part.to(bundle.device))).cpu() for part in products.split(batch_size)]
    )
    canny_edges = torch.stack([edges(product, *canny)[:1] for product in products])
    return Batch(
        z=_encode_texts(bundle, [sample.prompt for sample in samples], size, batch_size),
        null=_encode_texts(bundle, [sample.negative for sample in samples], size, batch_size),
        edges=canny_edges.expand(-1, 3, -1, -1),
        product=products,
        x_o=x_o,
        mask=latent_mask(products, (x_o.shape[-2], x_o.shape[-1])),
        noise=torch.zeros_like(x_o),
        sample=torch.arange(len(samples)),
        captions=[sample.caption for sample in samples],
        prompts=[sample.prompt for sample in samples],
    )


def _encode_texts(bundle: Bundle, texts: list[str], size: int, batch_size: int) -> Conditioning:
    """Each distinct text is encoded once; one that is too long is cut, and said so."""
    distinct = list(dict.fromkeys(texts))
    parts: list[Conditioning] = []
    too_long: list[tuple[str, str]] = []
    for start in range(0, len(distinct), batch_size):
        part = distinct[start : start + batch_size]
        condition, cut = bundle.encode_prompts(part, size)
        parts.append(condition.to("cpu", torch.float32))
        too_long += [(text, rest) for text, rest in zip(part, cut, strict=True) if rest]
    for text, rest in too_long[:SHOWN]:
        log.warning("prompt longer than the text encoder takes: %r loses %r", text, rest)
    if len(too_long) > SHOWN:
        log.warning("%d more prompts are longer than the text encoder takes", len(too_long) - SHOWN)
    encoded = parts[0]
    for later in parts[1:]:
        encoded = encoded.cat(later)
    position = {text: i for i, text in enumerate(distinct)}
    return encoded.index([position[text] for text in texts])


def noise_for(
    seed: int, indices: list[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """x_T [B,*shape]: each sample's depends on (seed, its index) alone, not on batch, rank or device."""
    rows = [np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(rows)).to(device)


def product_for(seed: int, index: int, count: int) -> int:
    """Which of `count` samples comes at place `index` of an endless order, shuffled anew for every epoch."""
    epoch, position = divmod(index, count)
    return int(_order(seed, epoch, count)[position])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    # The third number keeps these draws apart from the noise of sample `epoch`.
    return np.random.default_rng([seed, epoch, 1]).permutation(count)
