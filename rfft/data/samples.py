"""What is to be painted, one sample per product and prompt: from pictures on disk, or asked for in AdWorld.

Shapes: H W source pixels, S the side of the square canvas.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rfft.adworld.requests import draw_requests
from rfft.data.cutout import Pixels, Placement, load_cutout, place
from rfft.data.products import Product, Prompt, read_products, read_prompts
from rfft.errors import UserError

ADWORLD, ADWORLD_SPLITS, ADWORLD_SIZE = "adworld:", ("train", "val", "test"), 64
ADWORLD_PRODUCTS = 500  # it could draw forever


@dataclass(frozen=True)
class Sample:
    """A product on its canvas and what to paint around it."""

    id: str  # unique, fit for a file name
    canvas: Tensor  # [4,S,S] RGBA in [0,1], straight alpha
    caption: str
    prompt: str
    negative: str = ""
    attributes: dict[str, str] = field(default_factory=dict)  # what the prompt asks for; AdWorld only
    source: Pixels | None = None  # uint8 [H,W,4], the product's own pixels; not in AdWorld
    placement: Placement | None = None  # where of the source which part went
    product: str = ""  # whose samples are not independent of each other; "": this one stands alone


@dataclass(frozen=True)
class Skipped:
    """A product that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Framing:
    """How products come onto the canvas."""

    size: int  # S
    scale: float | None  # the product's longer side as a share of S; None keeps the picture's own framing
    white_level: int | None = None  # white from here on becomes transparent; None: pictures need alpha
    max_pixels: int = 50_000_000


def load_samples(
    source: str,
    prompts: str | None,
    framing: Framing,
    count: int | None = None,
    prompts_per_product: int = 1,
    seed: int = 0,
    skipped: list[Skipped] | None = None,
) -> list[Sample]:
    """Samples of the first `count` products (None: all), each with `prompts_per_product` prompts.

    source: a folder, a manifest or adworld:SPLIT; prompts: a prompt file, dealt out in turn, or None for the
    products' own prompts (one each); skipped: is given the products that cannot be used, None: the first of
    them is an error.
    """
    if source.startswith(ADWORLD):
        samples = _from_adworld(source, framing.size, count or ADWORLD_PRODUCTS, prompts_per_product, seed)
        return samples if prompts is None else _with_prompts(samples, read_prompts(prompts), seed)
    products = read_products(source)[:count]
    if prompts is None:
        dealt = [[_own_prompt(product, source)] for product in products]
    else:
        known = read_prompts(prompts)
        turns = min(prompts_per_product, len(known))
        dealt = [
            [known[(i * turns + turn) % len(known)] for turn in range(turns)] for i in range(len(products))
        ]
    found: list[Sample] = []
    for product, chosen in zip(products, dealt, strict=True):
        try:
            found += _samples_of(product, chosen, framing, seed)
        except UserError as error:
            if skipped is None:
                raise
            skipped.append(Skipped(product.id, str(error)))
    if skipped and not found:
        raise UserError(f"{source}: none of the {len(products)} products can be used: {skipped[0].reason}")
    return found


def _samples_of(product: Product, prompts: list[Prompt], framing: Framing, seed: int) -> Iterator[Sample]:
    source = load_cutout(product.image, framing.white_level, framing.max_pixels)
    for turn, prompt in enumerate(prompts):
        scale = framing.scale and (product.image_scale or prompt.image_scale or framing.scale)
        canvas, placement = place(source, framing.size, scale, prompt.matting)
        name = product.id + f"-{turn}" * (len(prompts) > 1)
        text = prompt.fill(random.Random(f"{seed}/{name}"))
        negative = product.negative_prompt or prompt.negative
        yield Sample(name, canvas, product.caption, text, negative, {}, source, placement, product.id)


def _own_prompt(product: Product, source: str) -> Prompt:
    if product.prompt is None:
        raise UserError(
            f"{source}: product {product.id!r} has no prompt; write one into the manifest, or give a prompt "
            "file with data.prompts (evaluate.prompts, --prompts)"
        )
    return Prompt(product.prompt)


def adworld_split(source: str) -> str:
    """The SPLIT of adworld:SPLIT."""
    split = source.removeprefix(ADWORLD)
    if split not in ADWORLD_SPLITS:
        raise UserError(f"{source}: no such split; give {', '.join(ADWORLD + s for s in ADWORLD_SPLITS)}")
    return split


def _from_adworld(source: str, size: int, count: int, turns: int, seed: int) -> list[Sample]:
    split = adworld_split(source)
    if size != ADWORLD_SIZE:
        raise UserError(f"{source}: AdWorld is {ADWORLD_SIZE} px wide; set data.image_size={ADWORLD_SIZE}")
    return [
        Sample(
            id=request.id,
            canvas=torch.from_numpy(request.product).permute(2, 0, 1).float().div(255).contiguous(),
            caption=request.caption,
            prompt=request.prompt,
            attributes=request.attributes,
            product=request.icon,
        )
        for request in draw_requests(split, count, turns, seed)
    ]


def _with_prompts(samples: list[Sample], prompts: list[Prompt], seed: int) -> list[Sample]:
    """AdWorld's products with other prompts, in turn: what they ask for is not known."""
    return [
        replace(s, prompt=p.fill(random.Random(f"{seed}/{s.id}")), negative=p.negative, attributes={})
        for s, p in ((s, prompts[i % len(prompts)]) for i, s in enumerate(samples))
    ]
