"""Conditions: all that a sample needs besides noise; and the draws that depend on seed and position alone.

Shapes: N samples, B batch, S T height and width of the canvas, C latent channels, h w latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.data.cutout import edges
from rfft.data.samples import Sample
from rfft.diffusion.compositing import latent_mask
from rfft.models.bundle import Bundle
from rfft.models.layers import composite_on_grey
from rfft.types import Batch, Conditioning, Size, sides, size_of
from rfft.utils.log import warn
from rfft.utils.processes import rank

PIXELS = 32 * 64**2  # of pictures that the encoder sees at once, be it one alone: its memory grows with them
TEXTS = 32  # prompts encoded at once
UNREAD = ("long", "foreign")  # what may be wrong with prompts
SHOWN = 10  # characters that a warning names


def init_image(product: Tensor) -> Tensor:
    """Return the picture [B,3,S,T] whose latent is x_o: the product [B,4,S,T] on mid-grey."""
    return composite_on_grey(product)[:, :3]


@torch.no_grad()
def encode_samples(bundle: Bundle, samples: list[Sample], canny: tuple[int, int] = (100, 200)) -> Batch:
    """Encode N samples; returns one Batch on the CPU, with zeros for the noise, which is drawn at each use.

    canny: the thresholds of the edge detector. Prompts that the text encoder cannot read whole are counted in
    a warning.
    """
    products = torch.stack([sample.canvas for sample in samples])
    x_o = _encode_products(bundle, products)
    size = size_of(products)
    return Batch(
        z=_encode_texts(bundle, [sample.prompt for sample in samples], size, "prompts"),
        null=_encode_texts(bundle, [sample.negative for sample in samples], size, "negative prompts"),
        edges=encode_edges(bundle, outlines(products, canny), products),
        product=products,
        x_o=x_o,
        mask=latent_mask(products, (x_o.shape[-2], x_o.shape[-1])),
        noise=torch.zeros_like(x_o),
        sample=torch.arange(len(samples)),
        captions=[sample.caption for sample in samples],
        prompts=[sample.prompt for sample in samples],
    )


def outlines(products: Tensor, canny: tuple[int, int]) -> Tensor:
    """Return c [B,3,S,T] of canvases [B,4,S,T]: one channel, seen three times."""
    found = torch.stack([edges(product, *canny)[:1] for product in products])
    return found.expand(-1, 3, -1, -1)


def encoded_at_once(size: Size) -> int:
    """Return how many pictures of a size go through the encoder in one forward."""
    height, width = sides(size)
    return max(1, PIXELS // (height * width))


def _encode_products(bundle: Bundle, products: Tensor) -> Tensor:
    """Return x_o [N,C,h,w] of canvases [N,4,S,T], in the precision of the bundle's frozen weights.

    Not under autocast: x_o is blended into every latent, and what half precision loses would stay there.
    """
    parts = products.split(encoded_at_once(size_of(products)))
    return torch.cat([bundle.encode_image(init_image(part.to(bundle.device))).cpu() for part in parts])


def encode_edges(bundle: Bundle, edges: Tensor, products: Tensor) -> Tensor:
    """Return what the ControlNet takes, of edges [N,3,S,T] and canvases [N,4,S,T]."""
    if not bundle.family.encodes_control:
        return edges
    count = encoded_at_once(size_of(products))
    parts = zip(edges.split(count), products.split(count), strict=True)
    return torch.cat(
        [bundle.encode_control(e.to(bundle.device), p.to(bundle.device)).cpu() for e, p in parts]
    )


def _encode_texts(bundle: Bundle, texts: list[str], size: Size, kind: str) -> Conditioning:
    """Return the features of N texts, each distinct one encoded once; `kind` is what a warning calls them."""
    distinct = list(dict.fromkeys(texts))
    parts: list[Conditioning] = []
    lost: list[int] = []  # characters that were cut off each
    for start in range(0, len(distinct), TEXTS):
        condition, cut = bundle.encode_prompts(distinct[start : start + TEXTS], size)
        parts.append(condition.to("cpu", torch.float32))
        lost += map(len, cut)
    if rank() == 0:
        for _, count, problem in unread(distinct, lost, getattr(bundle.family.pipe, "tokenizer", None)):
            warn(f"{count} of {len(distinct)} {kind} {problem}")
    encoded = parts[0]
    for later in parts[1:]:
        encoded = encoded.cat(later)
    position = {text: i for i, text in enumerate(distinct)}
    return encoded.index([position[text] for text in texts])


def unread(texts: list[str], lost: list[int], tokenizer: Any) -> Iterator[tuple[str, int, str]]:
    """Yield what a text encoder does not read of some texts: one of UNREAD, how many, and what is wrong.

    lost: how many characters were cut off each text; tokenizer: the encoder's, or None if it has none that
    could be asked.
    """
    cut = [rest for rest in lost if rest]
    if cut:
        problem = f"are longer than the text encoder reads: up to {max(cut):,} characters are cut off"
        yield UNREAD[0], len(cut), problem
    unknown = None if tokenizer is None else tokenizer.unk_token_id
    if unknown is None:
        return

    def is_unknown(text: str) -> bool:
        return unknown in tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    foreign = [text for text in texts if is_unknown(text)]
    if foreign:
        letters = sorted({letter for text in foreign for letter in text if is_unknown(letter)})
        more = " ..." * (len(letters) > SHOWN)
        shown = " ".join(letters[:SHOWN])
        problem = f"hold characters that the text encoder does not know: {shown}{more}"
        yield UNREAD[1], len(foreign), problem


def noise_for(
    seed: int, indices: list[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """Return x_T [B,*shape]; a sample's depends on (seed, its index) alone, not on batch, rank or device."""
    rows = [np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(rows)).to(device)


def product_for(seed: int, index: int, count: int) -> int:
    """Return which of `count` samples is number `index` of an endless order, shuffled anew in each epoch."""
    epoch, position = divmod(index, count)
    return int(_order(seed, epoch, count)[position])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    # The third number keeps these draws apart from the noise of sample `epoch`.
    return np.random.default_rng([seed, epoch, 1]).permutation(count)
