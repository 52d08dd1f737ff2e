"""The data seam: products with prompts as a map-style data set of samples, by what a config names.

A source is a folder, a manifest, a known name (adworld), or the path package.module:Name of a data set of
one's own; ":SPLIT" behind it takes one split of it (photos:val).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch.utils.data import Subset

from rfft.data.checked import CheckedDataset
from rfft.data.product_files import ProductFiles
from rfft.data.prompts import Prompt, read_prompts
from rfft.data.samples import Sample, Selection, Skipped, UnusableProduct
from rfft.data.splits import Split, held_out, none_in_split, parse_source
from rfft.errors import UserError, require
from rfft.utils.registry import construct, resolve

KEY = "data.products"
KNOWN = {"adworld": "rfft.adworld.products:AdWorldProducts"}  # with splits of their own
OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")  # package.module:Name


class SampleDataset(Protocol):
    """Samples by index, as in torch's map-style data sets; a data set of one's own has this form.

    Sample i is the same at every call and in every process, and can be read without those before it. For one
    that cannot be used, UnusableProduct is raised.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def read_samples(source: str, selection: Selection, skipped: list[Skipped] | None = None) -> list[Sample]:
    """Read all samples that a source names.

    skipped: is given the products that cannot be used; None: the first of them is an error. Raises UserError.
    """
    dataset = open_dataset(source, selection)
    samples: list[Sample] = []
    unusable: dict[str, Skipped] = {}
    for index in range(len(dataset)):
        try:
            samples.append(dataset[index])
        except UnusableProduct as error:
            if skipped is None:
                raise
            unusable[error.product] = Skipped(error.product, str(error))
    if skipped is not None:
        skipped += unusable.values()
    _require_distinct(samples, source)
    if not samples:
        reasons = [product.reason for product in unusable.values()] or ["there are none"]
        raise UserError(f"{source}: none of the {len(unusable)} products can be used: {reasons[0]}")
    return samples


def _require_distinct(samples: Sequence[Sample], source: str) -> None:
    known: set[str] = set()
    for sample in samples:
        require(sample.id not in known, f"{source}: two samples are called {sample.id!r}; ids must be unique")
        known.add(sample.id)


def open_dataset(source: str, selection: Selection) -> SampleDataset:
    """Return the data set that a source names; its samples are read when they are asked for."""
    known = source.partition(":")[0]
    if known in KNOWN:
        return _with_prompts(resolve(KEY, known, KNOWN)(source, selection), selection)
    name, split = held_out(source, selection.holdout)
    if not OWN.fullmatch(name) or Path(name).exists():
        return ProductFiles(name, split, selection)
    return _with_prompts(_open_own(name, split, selection), selection)


def evaluation_source(products: str, holdout: float | str | None, split: str = "test") -> str:
    """Return the source of what is evaluated on, where `products` are trained on and no others are named.

    That is their test split, or another one; `products` themselves if they have no splits.
    """
    name = holdout if isinstance(holdout, str) else parse_source(products)[0]
    return f"{name}:{split}" if name in KNOWN or holdout is not None else products


def _open_own(name: str, split: Split | None, selection: Selection) -> SampleDataset:
    dataset = construct(KEY, name, selection.options, {})
    for method in ("__len__", "__getitem__"):
        require(hasattr(dataset, method), f"{KEY} {name!r} is no map-style data set: it has no {method}")
    checked = CheckedDataset(dataset, name, selection.framing.size)
    chosen = [i for i in range(len(checked)) if split is None or split.has(checked[i].product)]
    if split is not None and not chosen:
        raise none_in_split(name, split, len(checked))
    return Subset(checked, chosen[: selection.count])  # type: ignore[arg-type]  # it needs no Dataset


def _with_prompts(dataset: SampleDataset, selection: Selection) -> SampleDataset:
    """Return the data set with the prompts of the selection's prompt file in place of its own."""
    if selection.prompts is None:
        return dataset
    return _Prompted(dataset, read_prompts(selection.prompts), selection.seed)


@dataclass(frozen=True)
class _Prompted:
    dataset: SampleDataset
    prompts: list[Prompt]
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample, prompt = self.dataset[index], self.prompts[index % len(self.prompts)]
        text = prompt.fill(random.Random(f"{self.seed}/{sample.id}"))
        return replace(sample, prompt=text, negative=prompt.negative, attributes={})
