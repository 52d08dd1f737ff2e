"""From an RFNet training config to labelled pictures, their maps, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from rfft.data.conditions import product_for
from rfft.errors import UserError
from rfft.feedback.dataset import PICTURES, FeedbackDataset, Item, Reading, mirrored, split_by_caption
from rfft.feedback.folder import Record, read_feedback
from rfft.feedback.maps import MapStore, write_maps
from rfft.feedback.shard_format import read_manifest
from rfft.feedback.shard_stream import ShardPictures, holds_shards
from rfft.models.pretrained import find_folder
from rfft.rewards.maps import find_depth, load_depth, load_saliency, make_maps
from rfft.rfnet import schema
from rfft.rfnet.schema import VOTES
from rfft.rfnet.votes import read_votes
from rfft.types import COARSE_LABELS, LABELS
from rfft.utils.log import messages

KINDS = {"d": "depth", "s": "saliency"}
LOAD = {"depth": load_depth, "saliency": load_saliency}
AT_ONCE = 32  # pictures that are read and kept together while their maps are made
MIRROR = 2  # keeps this draw apart from others of the same seed


def read_folders(folders: Sequence[str]) -> list[Record]:
    """Return the records of folders in RF1M's form, and of votes (votes:FILE)."""
    return [
        record
        for name in folders
        for record in (read_votes(name) if name.startswith(VOTES) else read_feedback(name))
    ]


def are_shards(folders: Sequence[str]) -> bool:
    """Folders of shards, or of plain files? UserError for a mixture."""
    kinds = {holds_shards(folder): folder for folder in folders}
    if len(kinds) == 2:
        raise UserError(f"{kinds[True]} holds shards and {kinds[False]} does not: name folders of one kind")
    return True in kinds


def open_shards(folders: Sequence[str], size: int, maps: schema.MapsConfig, coarse: bool) -> ShardPictures:
    """Shards carry their maps: where the networks' own are wanted, they must have been made by these."""
    wanted = {"known_maps": False, "depth": maps.depth, "saliency": maps.saliency}
    for folder in folders:
        settings = read_manifest(Path(folder)).settings
        if not maps.known and any(settings.get(name) != value for name, value in wanted.items()):
            raise UserError(
                f"maps.known=false, but {folder} was prepared with other maps: prepare it with "
                f"--no-known-maps --depth {maps.depth} --saliency {maps.saliency}, or set maps.known=true"
            )
    return ShardPictures(folders, size, coarse)


def open_both(
    data: schema.RFNetDataConfig, size: int, maps: schema.MapsConfig, coarse: bool
) -> tuple[ShardPictures, ShardPictures]:
    """Training and validation, where both are shards."""
    if not data.validation:
        raise UserError("data.train names shards: name others for validation with data.validation")
    return open_shards(data.train, size, maps, coarse), open_shards(data.validation, size, maps, coarse)


def split_records(data: schema.RFNetDataConfig) -> tuple[list[Record], list[Record]]:
    """Training and validation."""
    records = read_folders(data.train)
    if data.validation:
        return records, read_folders(data.validation)
    training, validation = split_by_caption(records, data.validation_share)
    if not (training and validation):
        raise UserError(
            f"data.validation_share={data.validation_share} leaves {len(training)} pictures for training and "
            f"{len(validation)} for validation: name folders with data.validation"
        )
    return training, validation


def build_maps(settings: schema.MapsConfig, drop: Sequence[str]) -> dict[str, MapStore]:
    """By kind, for the modalities that are not dropped."""
    return {
        kind: MapStore(kind, _mark(kind, getattr(settings, kind)), settings.cache, settings.known)
        for modality, kind in KINDS.items()
        if modality not in drop
    }


def _mark(kind: str, network: str) -> str:
    """Maps of another network are other maps: a short digest of its weights, or of its hub id."""
    folder = Path(find_depth(network) if kind == "depth" else find_folder(network))
    digest = hashlib.sha256()
    if not folder.is_dir():
        digest.update(network.encode())
    elif weights := sorted(folder.glob("*.safetensors")):
        for file in weights:
            digest.update(file.read_bytes())
    else:
        raise UserError(f"{folder}: there are no weights (*.safetensors) in it")
    return digest.hexdigest()[:8]


def fill_maps(
    maps: Mapping[str, MapStore],
    records: Sequence[Record],
    settings: schema.MapsConfig,
    device: torch.device,
    part: slice = slice(None),
) -> None:
    """Make what is missing of this process's `part` of the records."""
    for kind, known in maps.items():
        missing = known.missing(records[part])
        if not missing:
            continue
        network = LOAD[kind](getattr(settings, kind)).to(device)
        chunks = [missing[i : i + AT_ONCE] for i in range(0, len(missing), AT_ONCE)]
        for chunk in track(chunks, f"making {kind} of {len(missing)} pictures", console=messages()):
            write_maps(known, chunk, partial(make_maps, network), device)


class FolderPictures:
    """Pictures of plain folders (see Pictures)."""

    def __init__(self, items: FeedbackDataset, coarse: bool = False) -> None:
        self.items = items
        classes = len(COARSE_LABELS if coarse else LABELS)
        self.counts: list[int] = np.bincount(items.labels, minlength=classes).tolist()

    def endless(self, reading: Reading, first: int, seed: int, mirror: bool) -> DataLoader[Item]:
        positions = Positions(first, reading.batch_size, reading.process, reading.processes)
        items = Shuffled(self.items, seed, mirror)
        return DataLoader(items, batch_sampler=positions, num_workers=reading.workers)

    def once(self, reading: Reading) -> DataLoader[Item]:
        own = Subset(self.items, range(reading.process, len(self.items), reading.processes))
        return DataLoader(own, reading.batch_size, num_workers=reading.workers)


class Examples(Protocol):
    """What can be learned from, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Item: ...


class Shuffled(Dataset[Item]):
    """Place p of an endless order, shuffled anew for every epoch and mirrored by chance.

    A function of seed and place alone: neither a resume nor the number of processes changes what comes next.
    """

    def __init__(self, items: Examples, seed: int, mirror: bool) -> None:
        self.items, self.seed, self.mirror = items, seed, mirror

    def __getitem__(self, position: int) -> Item:
        item = self.items[product_for(self.seed, position, len(self.items))]
        flip = self.mirror and np.random.default_rng([self.seed, position, MIRROR]).random() < 0.5
        return mirrored(item) if flip else item


class Positions:
    """The places of one process's micro-batches, from micro-batch `first` on, without end."""

    def __init__(self, first: int, batch_size: int, process: int = 0, processes: int = 1) -> None:
        self.first, self.batch_size, self.process, self.processes = first, batch_size, process, processes

    def __iter__(self) -> Iterator[list[int]]:
        for micro in count(self.first):
            start = (micro * self.processes + self.process) * self.batch_size
            yield list(range(start, start + self.batch_size))


def batches(loader: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """What it yields; of the traceback that a worker puts before a UserError, only the last line is kept."""
    try:
        yield from loader
    except UserError as error:
        line = str(error).strip().splitlines()[-1]
        raise UserError(line.removeprefix("rfft.errors.UserError: ")) from None


def network_inputs(batch: dict[str, Any], tokenizer: Any, device: torch.device | str) -> dict[str, Tensor]:
    """A collated batch of items -> the arguments of RFNet.forward."""
    captions = tokenizer(batch["caption"], padding=True, truncation=True, return_tensors="pt").to(device)
    pictures = {name: batch[name].to(device, non_blocking=True).float() / 255 for name in PICTURES}
    return {**pictures, "caption_ids": captions.input_ids, "caption_mask": captions.attention_mask}
