"""Pictures of products on disk as a data set of samples."""

from __future__ import annotations

import random

from rfft.data.cutout import Pixels, load_cutout, place_on_canvas, refuse_sliver
from rfft.data.products import Product, read_products
from rfft.data.prompts import Prompt, read_prompts
from rfft.data.samples import Sample, Selection, UnusableProduct
from rfft.data.splits import Split, none_in_split
from rfft.errors import UserError


class ProductFiles:
    """The products of a folder or manifest, each with one prompt or more."""

    def __init__(self, source: str, split: Split | None, selection: Selection) -> None:
        """Read the lists of products (those of `split`; None: all) and prompts, but no picture yet."""
        self.framing, self.seed = selection.framing, selection.seed
        self.products = _in_split(source, split)[: selection.count]
        self.prompts = None if selection.prompts is None else read_prompts(selection.prompts)
        self.turns = 1 if self.prompts is None else min(selection.prompts_per_product, len(self.prompts))
        self._last: tuple[int, Pixels] | None = None  # a product's samples mostly follow each other
        if self.prompts is None:
            _require_prompts(self.products, source)

    def __len__(self) -> int:
        return len(self.products) * self.turns

    def __getitem__(self, index: int) -> Sample:
        """Return the sample; raises UnusableProduct if its picture cannot be used."""
        number, turn = divmod(index, self.turns)
        product = self.products[number]
        try:
            source = self._cutout(number)
        except UserError as error:
            raise UnusableProduct(product.id, str(error)) from None
        prompt = self._prompt(product, index)
        scale = self.framing.scale
        scale = scale and (product.image_scale or prompt.image_scale or scale)
        canvas, placement = place_on_canvas(source, self.framing.size, scale, prompt.matting)
        name = product.id + f"-{turn}" * (self.turns > 1)
        return Sample(
            id=name,
            canvas=canvas,
            caption=product.caption,
            prompt=prompt.fill(random.Random(f"{self.seed}/{name}")),
            negative=product.negative_prompt or prompt.negative,
            source=source,
            placement=placement,
            product=product.id,
        )

    def _cutout(self, number: int) -> Pixels:
        if self._last is None or self._last[0] != number:
            path, framing = self.products[number].image, self.framing
            source = load_cutout(path, framing.white_level, framing.max_pixels)
            refuse_sliver(source, path)
            self._last = number, source
        return self._last[1]

    def _prompt(self, product: Product, index: int) -> Prompt:
        """Return the product's own prompt, or the next one of the prompt file."""
        return (
            Prompt(product.prompt or "") if self.prompts is None else self.prompts[index % len(self.prompts)]
        )


def _in_split(source: str, split: Split | None) -> list[Product]:
    products = read_products(source)
    if split is None:
        return products
    chosen = [product for product in products if split.has(product.id)]
    if not chosen:
        raise none_in_split(source, split, len(products))
    return chosen


def _require_prompts(products: list[Product], source: str) -> None:
    for product in products:
        if product.prompt is None:
            raise UserError(
                f"{source}: product {product.id!r} has no prompt; write one into the manifest, or give a "
                "prompt file with data.prompts (evaluate.prompts, --prompts)"
            )
