"""Labelled pictures as RFNet takes them: a Dataset of dicts, of which torch's own collation makes batches.

An item, S the side of the square pictures (bytes, because processes pass them on quickly):
    image    uint8 [3,S,S]
    product  uint8 [4,S,S] RGBA, straight alpha
    depth    uint8 [1,S,S]
    saliency uint8 [1,S,S]
    caption  str
    label    int
    target   float32 [K], of pictures that are not in shards: the share of each class in what people said
    weight   float32 [], likewise: the picture's weight in the loss
RFNet is trained on anything that gives batches of such items as `Pictures` does.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from rfft.data.cutout import resize_rgba
from rfft.feedback.folder import Pixels, Record
from rfft.feedback.maps import MapStore
from rfft.types import LABELS

Item = dict[str, Any]
PICTURES = ("image", "product", "depth", "saliency")


@dataclass(frozen=True)
class Reading:
    """How one of several processes reads its part of the pictures."""

    batch_size: int
    workers: int = 0  # of the DataLoader
    process: int = 0
    processes: int = 1


class FeedbackSource(Protocol):
    """Labelled pictures, wherever they lie, as RFNet's training reads them."""

    counts: list[int]  # of each class

    def endless(self, reading: Reading, first: int, seed: int, mirror: bool) -> Iterable[Item]:
        """Return this process's micro-batches without end, from number `first` on.

        They are a function of the seed, the reading and their number, so that a resumed run sees the same.
        """

    def once(self, reading: Reading) -> Iterable[Item]:
        """Return this process's part of one round, in which every picture comes once among all processes."""


class FeedbackDataset(Dataset[Item]):
    """A data set of records as items, their pictures brought to size x size pixels."""

    def __init__(
        self, records: Sequence[Record], size: int, maps: Mapping[str, MapStore], coarse: bool = False
    ) -> None:
        """Take records and one store of maps for each kind; a kind without a store is zero.

        With `coarse` the label is 0 (available) or 1 (not).
        """
        self.records, self.size, self.maps = records, size, maps
        self.labels = [min(record.label, 1) if coarse else record.label for record in records]
        self.targets = [_target(record, coarse) for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Item:
        record = self.records[i]
        sample = record.load()
        pictures = {"image": square(sample.image, self.size), "product": square(sample.product, self.size)}
        for kind in ("depth", "saliency"):
            found = self.maps[kind].load(record, sample) if kind in self.maps else None
            blank = torch.zeros(1, self.size, self.size, dtype=torch.uint8)
            pictures[kind] = blank if found is None else square(found, self.size)
        said = {"target": self.targets[i], "weight": torch.tensor(record.weight)}
        return {**pictures, "caption": record.caption, "label": self.labels[i], **said}


def _target(record: Record, coarse: bool) -> Tensor:
    """Return the share of each class, [5], or [2] where they are coarse."""
    shares = torch.zeros(len(LABELS))
    shares[record.label] = 1.0
    if record.target is not None:
        shares = torch.tensor(record.target)
    return torch.stack([shares[0], shares[1:].sum()]) if coarse else shares


def targets_of(batch: Item, classes: int) -> Tensor:
    """Return the share of each class [B,K] in what people said; where just labels are known, 1 of theirs."""
    found: Tensor | None = batch.get("target")
    return F.one_hot(batch["label"], classes).float() if found is None else found


def square(picture: Pixels, size: int) -> Tensor:
    """Resize a grey [H,W], RGB [H,W,3] or RGBA [H,W,4] picture to uint8 [C,size,size].

    The aspect ratio is not kept.
    """
    if picture.shape[:2] != (size, size):
        if picture.ndim == 3 and picture.shape[2] == 4:
            picture = np.rint(resize_rgba(picture, size, size) * 255).astype(np.uint8)
        else:
            method = cv2.INTER_AREA if min(picture.shape[:2]) > size else cv2.INTER_LINEAR
            picture = cv2.resize(picture, (size, size), interpolation=method).astype(np.uint8, copy=False)
    channels_last = picture if picture.ndim == 3 else picture[..., None]
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1)))


def mirrored(item: Item) -> Item:
    """Return an item with all its pictures flipped from left to right."""
    return item | {name: item[name].flip(-1) for name in PICTURES}


def split_by_caption(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Split records into those for training and those for validation, about `share` of all.

    All pictures of a caption, and so of a product, fall on the same side, whatever other records there are.
    """
    limit = round(share * 2**32)
    held = [zlib.crc32(record.caption.encode()) < limit for record in records]
    training = [record for record, out in zip(records, held, strict=True) if not out]
    return training, [record for record, out in zip(records, held, strict=True) if out]
