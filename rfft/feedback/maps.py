"""Depth and saliency of labelled pictures: known with the data, or made once by a network and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from rfft.errors import UserError
from rfft.feedback.folder import FeedbackPicture, Pixels, Record, read_picture
from rfft.utils.atomic_io import new_file

Network = Callable[[Tensor], Tensor]  # [B,3,H,W] in [0,1] -> [B,1,H,W] in [0,1]


class MapStore:
    """Maps of one kind, depth or saliency, of all records: those of the data, and those that were made."""

    def __init__(self, kind: str, mark: str, cache: str | None = None, known: bool = True) -> None:
        """Take the kind of map, the mark of the network that makes missing ones, and the folder for these.

        Without `cache` they lie with the data. With `known` false the maps that come with the data are not
        used.
        """
        self.kind, self.mark, self.cache, self.known = kind, mark, cache, known

    def load(self, record: Record, sample: FeedbackPicture) -> Pixels:
        """Return the map of a record, uint8 [H,W]; raises UserError if it was not made yet."""
        found: Pixels | None = getattr(sample, self.kind) if self.known else None
        return read_picture(self.made_file(record), cv2.IMREAD_GRAYSCALE) if found is None else found

    def made_file(self, record: Record) -> Path:
        """Return where a made map of a record lies, or would lie."""
        folder = record.folder
        if self.cache is not None:  # two data sets may have the same name
            place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
            folder = Path(self.cache) / f"{folder.name}-{place}"
        return folder / f"made-{self.kind}-{self.mark}" / f"{Path(record.name).stem}.png"

    def missing(self, records: Iterable[Record]) -> list[Record]:
        """Return the records whose map is neither with the data nor made."""
        return [
            record
            for record in records
            if not (self.known and record.map_file(self.kind).exists())
            and not self.made_file(record).exists()
        ]


@torch.no_grad()
def write_maps(
    maps: MapStore, records: Sequence[Record], network: Network, device: torch.device | str
) -> None:
    """Make and write the maps of a few records, each at its picture's own size."""
    loaded = [(record, record.load().image) for record in records]
    for _, group in groupby(loaded, key=lambda pair: pair[1].shape):
        part = list(group)
        pixels = torch.from_numpy(np.stack([image for _, image in part])).to(device)
        made = network(pixels.permute(0, 3, 1, 2).float() / 255)[:, 0].mul(255).round().byte().cpu()
        for (record, _), values in zip(part, made.numpy(), strict=True):
            _write(maps.made_file(record), values)


def _write(file: Path, values: Pixels) -> None:
    """Write a file whole or not at all, so that a run that is cut off here goes on later."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as draft:
            draft.write(cv2.imencode(".png", values)[1].tobytes())
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}); name another folder with maps.cache"
        ) from error
