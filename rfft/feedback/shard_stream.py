"""Training RFNet from shards: one stream per process and DataLoader worker, in constant memory.

The items are those of rfft/feedback/dataset.py, brought to S x S pixels. A reader is one DataLoader worker of
one process; it reads shards from beginning to end and holds the encoded samples of one at a time.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rfft.errors import UserError
from rfft.feedback.dataset import PICTURES, Item, Reading, mirrored, square
from rfft.feedback.shard_format import MANIFEST, decode_sample, read_complete
from rfft.types import LABELS

SHARDS, SAMPLES, FLIP = 11, 12, 13  # keep these draws apart from others of the same seed


def holds_shards(folder: str | Path) -> bool:
    """Tell whether a folder is one of shards."""
    return (Path(folder) / MANIFEST).is_file()


@dataclass(frozen=True)
class ShardFile:
    """A shard, and what the manifest says of it."""

    path: Path
    bytes: int
    samples: int

    def members(self) -> list[dict[str, Any]]:
        """Return all samples, still encoded, in no more memory than the file's bytes.

        Raises UserError for anything but the shard of the manifest.
        """
        try:
            self._require("bytes", self.path.stat().st_size, self.bytes)
            # "r:" does not unpack what is compressed
            with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                found = self._samples(tar)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.path} cannot be read: {reason}; prepare it again") from None
        self._require("samples", len(found), self.samples)
        return found

    def _samples(self, tar: tarfile.TarFile) -> list[dict[str, Any]]:
        samples: dict[str, dict[str, Any]] = {}
        for info in tar:
            # Links, sparse files and made-up sizes: small on the disk, large in memory.
            if not info.isreg() or info.issparse():
                raise ValueError(f"{info.name} is no plain file")
            if not 0 <= info.size <= self.bytes - info.offset_data:
                raise ValueError(f"{info.name} claims {info.size} bytes")
            key, _, kind = info.name.partition(".")
            sample = samples.setdefault(key, {"__key__": key, "__url__": str(self.path)})
            if (content := tar.extractfile(info)) is not None:
                sample[kind] = content.read()
        return list(samples.values())

    def _require(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise UserError(f"{self.path}: {found} {what} instead of {expected}; prepare it again")


class ShardPictures:
    """Labelled pictures in folders of shards; a FeedbackSource."""

    def __init__(self, folders: Sequence[str], size: int, coarse: bool = False) -> None:
        """Open the folders; with `coarse` the label is 0 (available) or 1 (not)."""
        manifests = [read_complete(Path(folder)) for folder in folders]
        self.size, self.coarse = size, coarse
        self.shards = [
            ShardFile(Path(folder).resolve() / shard.file, shard.bytes, shard.samples)
            for folder, manifest in zip(folders, manifests, strict=True)
            for _, shard in sorted(manifest.shards.items())
            if shard.samples
        ]
        totals = [sum(manifest.labels()[name] for manifest in manifests) for name in LABELS]
        self.counts = [totals[0], sum(totals[1:])] if coarse else totals

    def endless(self, reading: Reading, first: int, seed: int, mirror: bool) -> DataLoader[Item]:
        """Return this process's micro-batches from number `first` on, shuffled anew in every epoch.

        Raises UserError if there are fewer shards than readers.
        """
        readers = reading.processes * max(1, reading.workers)
        if len(self.shards) < readers:
            raise UserError(
                f"{len(self.shards)} shards are too few for {readers} readers ({reading.processes} processes "
                f"x {max(1, reading.workers)} workers): lower data.workers, or prepare with a smaller "
                "--shard-size"
            )
        stream = Endless(self, reading, first, seed, mirror)
        return DataLoader(stream, reading.batch_size, num_workers=reading.workers)

    def once(self, reading: Reading) -> DataLoader[Item]:
        """Return this process's part of one round, in which every picture comes once among all."""
        return DataLoader(Once(self, reading), reading.batch_size, num_workers=reading.workers)

    def item(self, members: dict[str, Any]) -> Item:
        """Return the item (see dataset.py) that a sample's members hold."""
        feedback = decode_sample(members, self.size)
        pictures = {kind: square(getattr(feedback.sample, kind), self.size) for kind in PICTURES}
        label = min(feedback.label, 1) if self.coarse else feedback.label
        return {**pictures, "caption": feedback.caption, "label": label}


class Once(IterableDataset[Item]):
    """A stream that deals each shard out to one of all readers."""

    def __init__(self, pictures: ShardPictures, reading: Reading) -> None:
        self.pictures, self.reading = pictures, reading

    def __iter__(self) -> Iterator[Item]:
        worker, workers = _worker()
        reader = self.reading.process * workers + worker
        for shard in self.pictures.shards[reader :: self.reading.processes * workers]:
            yield from map(self.pictures.item, shard.members())


class Endless(IterableDataset[Item]):
    """A stream of a process's samples from micro-batch `first` on.

    It is a function of the seed, the reader and the number: what a resumed run has seen is passed over by the
    manifests' counts, without reading it.
    """

    def __init__(
        self, pictures: ShardPictures, reading: Reading, first: int, seed: int, mirror: bool
    ) -> None:
        self.pictures, self.reading = pictures, reading
        self.first, self.seed, self.mirror = first, seed, mirror

    def __iter__(self) -> Iterator[Item]:
        worker, workers = _worker()
        # Workers take turns, and a DataLoader begins with its number 0, whoever's turn it was.
        turn = (worker + self.first) % workers
        seen = len(range(turn, self.first, workers)) * self.reading.batch_size
        reader = self.reading.process * workers + turn
        place = 0
        for epoch, shard in self._own(reader, self.reading.processes * workers):
            if place + shard.samples > seen:
                yield from self._shuffled(epoch, shard, max(0, seen - place))
            place += shard.samples

    def _own(self, reader: int, readers: int) -> Iterator[tuple[int, ShardFile]]:
        """Yield epoch and shard without end; every epoch deals all shards out anew."""
        shards = self.pictures.shards
        for epoch in count():
            order = np.random.default_rng([self.seed, epoch, SHARDS]).permutation(len(shards))
            yield from ((epoch, shards[i]) for i in order[reader::readers])

    def _shuffled(self, epoch: int, shard: ShardFile, skip: int) -> Iterator[Item]:
        """Yield a shard's items in an order that is new in every epoch, without the first `skip`."""
        members = shard.members()
        place = [self.seed, epoch, self.pictures.shards.index(shard)]
        order = np.random.default_rng([*place, SAMPLES]).permutation(len(members))
        flips = np.random.default_rng([*place, FLIP]).random(len(members)) < 0.5
        for i in islice(order, skip, None):
            item = self.pictures.item(members[i])
            yield mirrored(item) if self.mirror and flips[i] else item


def _worker() -> tuple[int, int]:
    """Return this DataLoader worker's number and how many there are; the process itself is 0 of 1."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
