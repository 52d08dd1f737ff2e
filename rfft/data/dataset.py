"""The data seam: products with prompts as a map-style data set of samples, by what a config names.

A source is a folder, a manifest, a table, a known name (adworld), or the path package.module:Name of a data
set of one's own; ":SPLIT" behind it takes one split of it (photos:val).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar, overload

from torch.utils.data import Subset

from rfft.data.checked import CheckedDataset
from rfft.data.product_files import ProductFiles
from rfft.data.product_tables import HUB
from rfft.data.prompts import Prompt, read_prompts
from rfft.data.samples import Entry, Sample, Selection, Skipped, UnusableProduct
from rfft.data.splits import Split, held_out, none_in_split, parse_source
from rfft.errors import UserError, require
from rfft.types import Size
from rfft.utils.registry import construct, resolve

KEY = "data.products"
KNOWN = {"adworld": "rfft.adworld.products:AdWorldProducts"}  # with splits of their own
OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")  # package.module:Name
LOOK = 100  # samples read before anything begins, so that what is wrong with all is said at once
T = TypeVar("T")


class SampleDataset(Protocol):
    """Samples by index, as in torch's map-style data sets; a data set of one's own has this form.

    Sample i is the same at every call and in every process, and can be read without those before it. For one
    that cannot be used, UnusableProduct is raised. Two methods may save it work: `entry` returns a sample in
    words, `address` a key of all that its canvas depends on; a third one, `size`, returns its canvas's size
    without a look at it, and lets samples differ in that (see ProductFiles).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Samples(Sequence[Sample]):
    """The samples of a source, each of them read when it is asked for, and always the same.

    Where products that cannot be used are skipped, the next one that can be used takes the place of one that
    cannot: which sample a number stands for follows from the data alone.
    """

    def __init__(self, dataset: SampleDataset, source: str, skipped: list[Skipped] | None = None) -> None:
        """Read the first LOOK samples, and keep none; see read_samples()."""
        self.dataset, self.source, self.skips = dataset, source, skipped is not None
        self.on_skip: Callable[[Skipped], object] = lambda product: None  # called for those found later
        self._lock = Lock()
        self._unusable: dict[str, Skipped] = {}
        looked = min(LOOK, len(dataset))
        self._good = self._look(looked)
        self._removed = looked - len(self._good)
        if skipped is not None:
            skipped += self._unusable.values()

    def _look(self, count: int) -> list[int]:
        known: set[str] = set()
        good = []
        for index in range(count):
            try:
                name = self.dataset[index].id
            except UnusableProduct as error:
                if not self.skips:
                    raise
                self._unusable[error.product] = Skipped(error.product, str(error))
                continue
            require(name not in known, f"{self.source}: two samples are called {name!r}; ids must be unique")
            known.add(name)
            good.append(index)
        if not good:
            reasons = [product.reason for product in self._unusable.values()] or ["there are none"]
            which = "first " * (count < len(self.dataset))
            raise UserError(
                f"{self.source}: none of the {which}{len(self._unusable)} products can be used: {reasons[0]}"
            )
        return good

    def __len__(self) -> int:
        return len(self.dataset) - self._removed

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self.read(range(len(self))[index], self.dataset.__getitem__)

    def read(self, number: int, how: Callable[[int], T]) -> T:
        """Return how(i) of the data set's item i that is this sample; raises UnusableProduct or UserError.

        `how` raises UnusableProduct for an item that cannot be used.
        """
        size = self.size(number)
        for step in range(len(self)):
            index = self.item((number + step) % len(self))
            if self.size_of(index) != size:  # batches have one size
                continue
            try:
                return how(index)
            except UnusableProduct as error:
                if not self.skips:
                    raise
                self._skip(error)
        raise UserError(f"{self.source}: none of the {len(self)} samples can be used")

    def problem(self, number: int) -> Skipped | None:
        """Return why a sample cannot be used, if it cannot; its picture is read."""
        try:
            self.dataset[self.item(number)]
        except UnusableProduct as error:
            return Skipped(error.product, str(error))
        return None

    def entry(self, number: int) -> Entry:
        """Return a sample in words; without its picture being read where the data set can tell."""
        return self.entry_of(self.item(number))

    def entry_of(self, index: int) -> Entry:
        """Return the same for an item of the data set."""
        told = getattr(self.dataset, "entry", None)
        return self.dataset[index].entry if told is None else told(index)

    def size(self, number: int) -> Size | None:
        """Return the size of a sample's canvas; None where the data set does not tell."""
        return self.size_of(self.item(number))

    def size_of(self, index: int) -> Size | None:
        """Return the same for an item of the data set."""
        told = getattr(self.dataset, "size", None)
        return None if told is None else told(index)

    def products(self) -> int | None:
        """Return how many products there are; None where all samples would have to be read to tell."""
        if isinstance(self.dataset, ProductFiles):
            return len(self.dataset.products) - len(self._unusable)
        if len(self.dataset) > LOOK and not self.in_memory:
            return None
        return len({self.entry(i).product for i in range(len(self))})

    def agreed(self) -> list[str]:
        """Return texts that are equal in all processes if these read the same samples."""
        if isinstance(self.dataset, ProductFiles):
            return [str(len(self)), self.dataset.products.digest]
        return [str(len(self)), *(self.entry(i).id for i in range(min(LOOK, len(self))))]

    @property
    def in_memory(self) -> bool:
        """Say whether reading a sample takes no time."""
        return self.source.partition(":")[0] in KNOWN

    def item(self, number: int) -> int:
        """Return which item of the data set a sample is."""
        return self._good[number] if number < len(self._good) else number + self._removed

    def _skip(self, error: UnusableProduct) -> None:
        with self._lock:
            if error.product not in self._unusable:
                self._unusable[error.product] = Skipped(error.product, str(error))
                self.on_skip(self._unusable[error.product])


def read_samples(source: str, selection: Selection, skipped: list[Skipped] | None = None) -> Samples:
    """Return the samples that a source names, after a look at the first ones.

    skipped: is given those of their products that cannot be used; None: any is an error, be it found now or
    later. Raises UserError.
    """
    return Samples(open_dataset(source, selection), source, skipped)


def open_dataset(source: str, selection: Selection) -> SampleDataset:
    """Return the data set that a source names; its samples are read when they are asked for."""
    known = source.partition(":")[0]
    if known in KNOWN:
        return _with_prompts(resolve(KEY, known, KNOWN)(source, selection), selection)
    name, split = held_out(source, selection.holdout)
    if name.startswith(HUB) or not OWN.fullmatch(name) or Path(name).exists():
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
