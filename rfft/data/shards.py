"""Reading labelled feedback from shards, for training: shuffled, dealt out to ranks and workers, in batches.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from rfft.data.feedback import Pixels
from rfft.data.shard_format import Feedback, decode_sample, read_complete
from rfft.errors import UserError


@dataclass
class FeedbackBatch:
    """B samples of one size; pictures are uint8, channels first."""

    image: Tensor  # [B,3,H,W]
    product: Tensor  # [B,4,H,W] RGBA, straight alpha
    depth: Tensor  # [B,1,H,W]
    saliency: Tensor  # [B,1,H,W]
    label: Tensor  # [B] int64, index into LABELS
    caption: list[str]
    prompt: list[str]


def read_shards(
    folder: Path, size: int | None = None, shuffle: int = 0, seed: int = 0, repeat: bool = False
) -> IterableDataset[Feedback]:
    """Samples of a folder of shards, each once among all ranks and DataLoader workers.

    size: pictures as squares of this side (None: as stored). shuffle: samples held back to draw from (0: the
    order of the shards); shards are shuffled as well. repeat: for ever, in a new order each time, so that all
    ranks can take as many batches as each other, although shards differ a little in what they hold.
    """
    wds = webdataset()
    files = [str(folder.resolve() / s.file) for s in read_complete(folder).shards.values() if s.samples]
    return wds.DataPipeline(
        _Order(files, bool(shuffle), seed, repeat),
        wds.tarfile_to_samples(),
        wds.detshuffle(shuffle, shuffle, seed) if shuffle else None,
        wds.map(partial(decode_sample, size=size)),
    )


@dataclass
class _Order:
    """The shards that this rank and DataLoader worker reads, in their order."""

    files: list[str]
    shuffle: bool
    seed: int
    repeat: bool

    def __call__(self) -> Iterator[dict[str, str]]:
        for epoch in count() if self.repeat else (0,):
            chosen = list(self.files)
            if self.shuffle:
                random.Random(f"{self.seed}/{epoch}").shuffle(chosen)
            yield from ({"url": file} for file in _own_share(chosen, self.repeat))


def _own_share(files: list[str], repeat: bool) -> list[str]:
    rank, ranks, worker, workers = webdataset().utils.pytorch_worker_info()
    readers = ranks * workers
    if repeat and len(files) < readers:
        raise UserError(
            f"{len(files)} shards are too few for {readers} readers ({ranks} ranks x {workers} workers); "
            "use fewer workers, or prepare with a smaller --shard-size"
        )
    return files[rank * workers + worker :: readers]


def load_batches(
    dataset: IterableDataset[Feedback], batch_size: int, workers: int = 0, last: bool = True
) -> DataLoader[Any]:
    """Batches of a dataset of one size; `last`: also the smaller one at the end."""
    return DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate, drop_last=not last)


def collate(items: Iterable[Feedback]) -> FeedbackBatch:
    """Raises UserError where pictures differ in size."""
    items = list(items)
    samples = [item.sample for item in items]
    if len({sample.image.shape for sample in samples}) > 1:
        raise UserError("pictures of several sizes in one batch; read them with size=")
    return FeedbackBatch(
        stack([sample.image for sample in samples]),
        stack([sample.product for sample in samples]),
        stack([sample.depth[..., None] for sample in samples if sample.depth is not None]),
        stack([sample.saliency[..., None] for sample in samples if sample.saliency is not None]),
        torch.tensor([item.label for item in items]),
        [item.caption for item in items],
        [item.prompt for item in items],
    )


def stack(pictures: list[Pixels]) -> Tensor:
    """Pictures [H,W,C] of one size as a tensor [B,C,H,W]."""
    stacked: NDArray[np.uint8] = np.stack(pictures).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stacked))


def webdataset() -> Any:
    """The library, or what to install."""
    try:
        import webdataset
    except ImportError:
        raise UserError("shards need the package webdataset: pip install 'rfft[data]'") from None
    return webdataset
