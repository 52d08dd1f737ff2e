"""What is painted: a sample is a product on its canvas with a prompt.

Shapes: H W pixels of the canvas, H' W' of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rfft.data.cutout import Pixels, Placement
from rfft.errors import UserError
from rfft.types import Size


@dataclass(frozen=True)
class Sample:
    """A product on its canvas and what to paint around it.

    A data set of one's own makes these; the first four fields are all that is needed.
    """

    id: str  # unique in its data set, and fit for a file name
    canvas: Tensor  # [4,H,W] float RGBA in [0,1], straight alpha: the product where it shall stand
    caption: str  # what the product is, for the reward networks: "oak stool, about 45 cm tall"
    prompt: str  # what is to be painted around it
    negative: str = ""  # the negative prompt
    attributes: Mapping[str, str] = field(
        default_factory=dict
    )  # what the prompt asks for; known in AdWorld only
    source: Pixels | None = None  # uint8 [H',W',4], the product's own pixels, to be pasted at full size
    placement: Placement | None = None  # where on the canvas which part of the source lies
    product: str = ""  # names the product, the same for all its prompts; empty: `id` does

    def __post_init__(self) -> None:
        object.__setattr__(self, "product", self.product or self.id)

    @property
    def entry(self) -> Entry:
        return Entry(self.id, self.caption, self.prompt, self.negative, self.attributes, self.product)


@dataclass(frozen=True)
class Entry:
    """A sample in words: all of it but its pictures."""

    id: str
    caption: str
    prompt: str
    negative: str
    attributes: Mapping[str, str]
    product: str


@dataclass(frozen=True)
class Framing:
    """How pictures of products come onto the canvas."""

    size: Size  # of the canvas
    # The share of the canvas that the product's longer side takes; None keeps the picture's own framing.
    scale: float | None
    white_level: int | None = None  # white from here on becomes transparent; None: pictures need alpha
    max_pixels: int = 50_000_000
    buckets: tuple[Size, ...] = field(default=(), repr=False)  # each product has the nearest of these sizes


@dataclass(frozen=True)
class Selection:
    """What of a data set is wanted, and in which form."""

    framing: Framing
    prompts: str | None = None  # a prompt file, dealt out in turn; None: the products' own prompts
    count: int | None = None  # the first so many products; None: all
    prompts_per_product: int = 1
    seed: int = 0  # of the colours in prompts, and of what AdWorld asks for
    holdout: float | str | None = None  # see splits.py
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of a data set of one's own


@dataclass(frozen=True)
class Skipped:
    """A product that was left out, and why."""

    id: str
    reason: str


class UnusableProduct(UserError):
    """A product cannot be used; data.on_error=skip leaves it out instead."""

    def __init__(self, product: str, reason: str) -> None:
        super().__init__(reason)
        self.product = product
