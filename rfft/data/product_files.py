"""Pictures of products on disk as a data set of samples."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from rfft.data.cutout import load_cutout, place_on_canvas, refuse_sliver
from rfft.data.products import Product, ProductList, read_products
from rfft.data.prompts import Prompt, read_prompts
from rfft.data.samples import Entry, Framing, Sample, Selection, UnusableProduct
from rfft.data.sizes import nearest, picture_shape
from rfft.data.splits import Split, none_in_split
from rfft.data.store import key_of
from rfft.errors import UserError
from rfft.types import Size
from rfft.utils.log import messages
from rfft.utils.processes import rank


class ProductFiles:
    """The products of a folder or manifest, each with one prompt or more."""

    def __init__(self, source: str, split: Split | None, selection: Selection) -> None:
        """Read the lists of products (those of `split`; None: all) and prompts, but no picture yet."""
        self.framing, self.seed = selection.framing, selection.seed
        self.prompts = None if selection.prompts is None else read_prompts(selection.prompts)
        self.products = _listed(source, split, needs_prompts=self.prompts is None)[: selection.count]
        self.buckets = _buckets(self.products, self.framing)
        self.turns = 1 if self.prompts is None else min(selection.prompts_per_product, len(self.prompts))

    def __len__(self) -> int:
        return len(self.products) * self.turns

    def entry(self, index: int) -> Entry:
        """Return the sample in words, without a look at its picture."""
        return self._entry(index, self._product(index))

    def size(self, index: int) -> Size:
        """Return the size of the sample's canvas."""
        if self.buckets is None:
            return self.framing.size
        return self.framing.buckets[self.buckets[index // self.turns]]

    def sample_buckets(self) -> NDArray[np.uint8] | None:
        """Return the number of each sample's bucket; None where all have one size."""
        return None if self.buckets is None else self.buckets.repeat(self.turns)

    def address(self, index: int) -> bytes:
        """Return what the sample's canvas depends on, as a key: the picture's file, and its framing.

        Raises UnusableProduct if the file cannot be read.
        """
        product = self._product(index)
        try:
            data = product.image.read_bytes()
        except OSError as error:
            raise UnusableProduct(product.id, f"{product.image}: {error.strerror}") from None
        except UserError as error:
            raise UnusableProduct(product.id, str(error)) from None
        return key_of(data, repr((self.framing, self._scale(index, product), self._prompt(index).matting)))

    def __getitem__(self, index: int) -> Sample:
        """Return the sample; raises UnusableProduct if its picture cannot be used."""
        product = self._product(index)
        try:
            source = load_cutout(product.image, self.framing.white_level, self.framing.max_pixels)
            refuse_sliver(source, product.image)
        except UserError as error:
            raise UnusableProduct(product.id, str(error)) from None
        scale, matting = self._scale(index, product), self._prompt(index).matting
        canvas, placement = place_on_canvas(source, self.size(index), scale, matting)
        entry = self._entry(index, product)
        return Sample(
            entry.id,
            canvas,
            entry.caption,
            entry.prompt,
            entry.negative,
            source=source,
            placement=placement,
            product=entry.product,
        )

    def _product(self, index: int) -> Product:
        return self.products[index // self.turns]

    def _entry(self, index: int, product: Product) -> Entry:
        prompt, name = self._prompt(index), product.id
        if self.prompts is None:
            prompt = Prompt(product.prompt or "")
        if self.turns > 1:
            name += f"-{index % self.turns}"
        text = prompt.fill(random.Random(f"{self.seed}/{name}"))
        return Entry(name, product.caption, text, product.negative_prompt or prompt.negative, {}, product.id)

    def _scale(self, index: int, product: Product) -> float | None:
        scale = self.framing.scale
        return scale and (product.image_scale or self._prompt(index).image_scale or scale)

    def _prompt(self, index: int) -> Prompt:
        """Return the next prompt of the prompt file; an empty one without a file."""
        return Prompt("") if self.prompts is None else self.prompts[index % len(self.prompts)]


def _buckets(products: ProductList, framing: Framing) -> NDArray[np.uint8] | None:
    """Return the bucket of each product; None where all have one size.

    A product whose picture cannot be read goes to the first one: it is refused when it is asked for.
    """
    if not framing.buckets:
        return None
    found = np.zeros(len(products), np.uint8)
    with messages(quiet=rank() > 0).status("looking at the products' proportions"):
        for i, product in enumerate(products):
            shape = product.size or picture_shape(product.image)
            found[i] = 0 if shape is None else nearest(framing.buckets, *shape)
    return found


def _listed(source: str, split: Split | None, needs_prompts: bool) -> ProductList:
    def require_prompt(product: Product) -> None:
        if needs_prompts and product.prompt is None:
            raise UserError(
                f"{source}: product {product.id!r} has no prompt; write one into the manifest, or give a "
                "prompt file with data.prompts (evaluate.prompts, --prompts)"
            )

    products = read_products(source, (lambda _: True) if split is None else split.has, require_prompt)
    if not len(products):
        assert split is not None
        raise none_in_split(source, split, products.total)
    return products
