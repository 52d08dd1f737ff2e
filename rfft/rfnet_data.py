"""From an RFNet training config to labelled pictures, their maps, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rfft import rfnet_config
from rfft.conditions import product_for
from rfft.data.feedback import Record, read_feedback
from rfft.data.labelled import PICTURES, Item, Labelled, mirrored, split_by_caption
from rfft.data.maps import Maps, make_maps
from rfft.errors import UserError
from rfft.models.auxiliary import MapNet
from rfft.models.pretrained import WEIGHTS_NAME, find_folder

KINDS = {"d": "depth", "s": "saliency"}
AT_ONCE = 32  # pictures whose maps are made together
MIRROR = 2  # keeps this draw apart from others of the same seed


def read_folders(folders: Sequence[str]) -> list[Record]:
    return [record for folder in folders for record in read_feedback(folder)]


def split_records(data: rfnet_config.Data) -> tuple[list[Record], list[Record]]:
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


def build_maps(settings: rfnet_config.Maps, drop: Sequence[str]) -> dict[str, Maps]:
    """By kind, for the modalities that are not dropped."""
    return {
        kind: Maps(kind, _mark(getattr(settings, kind)), settings.cache, settings.known)
        for modality, kind in KINDS.items()
        if modality not in drop
    }


def _mark(network: str) -> str:
    """Maps of another network are other maps: a short digest of its weights."""
    weights = find_folder(network) / WEIGHTS_NAME
    if not weights.is_file():
        raise UserError(f"{weights.parent}: {WEIGHTS_NAME} is missing")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:8]


def fill_maps(
    maps: Mapping[str, Maps],
    records: Sequence[Record],
    settings: rfnet_config.Maps,
    device: torch.device,
    part: slice = slice(None),
) -> None:
    """Make what is missing of this process's `part` of the records."""
    for kind, known in maps.items():
        missing = known.missing(records[part])
        if not missing:
            continue
        network = MapNet.from_pretrained(getattr(settings, kind)).to(device)
        chunks = [missing[i : i + AT_ONCE] for i in range(0, len(missing), AT_ONCE)]
        for chunk in track(chunks, f"making {kind} of {len(missing)} pictures", console=Console(stderr=True)):
            make_maps(known, chunk, network, device)


class Shuffled(Dataset[Item]):
    """Place p of an endless order, shuffled anew for every epoch and mirrored by chance.

    A function of seed and place alone: neither a resume nor the number of processes changes what comes next.
    """

    def __init__(self, items: Labelled, seed: int, mirror: bool) -> None:
        self.items, self.seed, self.mirror = items, seed, mirror

    def __getitem__(self, place: int) -> Item:
        item = self.items[product_for(self.seed, place, len(self.items))]
        flip = self.mirror and np.random.default_rng([self.seed, place, MIRROR]).random() < 0.5
        return mirrored(item) if flip else item


class Places:
    """The places of one process's micro-batches, from micro-batch `first` on, without end."""

    def __init__(self, first: int, batch_size: int, process: int = 0, processes: int = 1) -> None:
        self.first, self.batch_size, self.process, self.processes = first, batch_size, process, processes

    def __iter__(self) -> Iterator[list[int]]:
        for micro in count(self.first):
            start = (micro * self.processes + self.process) * self.batch_size
            yield list(range(start, start + self.batch_size))


def batches(loader: DataLoader[Item]) -> Iterator[dict[str, Any]]:
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
