"""One shard: pictures are read, missing depth and saliency maps computed in batches, and all of it written.

Shapes: B pictures of one size, H W pixels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from rfft.data.pictures import EXTENSIONS, BrokenFile, decode, read_header
from rfft.errors import UserError
from rfft.feedback.folder import FeedbackPicture, Pixels
from rfft.feedback.rf1m_index import MAPS, IndexRow
from rfft.feedback.shard_format import MODES, Feedback, Shard, encode_sample
from rfft.feedback.sources import Source
from rfft.models.pretrained import find_folder
from rfft.rewards.maps import find_depth, load_depth, load_saliency, make_maps
from rfft.types import LABELS
from rfft.utils.atomic_io import new_file

CHUNK_SAMPLES, CHUNK_PIXELS = 64, 2**22  # held in memory at a time
MIN_SIDE = 16  # the networks halve a picture four times
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Problem:
    """A sample that was left out, and why."""

    name: str
    reason: str


@dataclass
class Loaded:
    """A sample on its way into the shard."""

    row: IndexRow
    image: Pixels
    product: Pixels
    maps: dict[str, Pixels]
    originals: dict[str, bytes] = field(default_factory=dict)  # files that go in as they are


class MapMaker:
    """The frozen networks behind --depth and --saliency, loaded when the first map is missing."""

    def __init__(self, depth: str, saliency: str) -> None:
        self.names = {"depth": depth, "saliency": saliency}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @staticmethod
    def check(depth: str, saliency: str) -> None:
        """Raise a UserError for a folder or name that is none; hub ids are checked when they are loaded."""
        find_depth(depth)
        find_folder(saliency)

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by kind of map, on the GPU if there is one."""
        loaded = {"depth": load_depth(self.names["depth"]), "saliency": load_saliency(self.names["saliency"])}
        return {kind: network.to(self.device) for kind, network in loaded.items()}

    def fill(self, samples: list[Loaded]) -> None:
        """Compute the maps that samples lack; pictures of one size go through together."""
        for kind in MAPS:
            groups = defaultdict(list)
            for sample in samples:
                if kind not in sample.maps:
                    groups[sample.image.shape[:2]].append(sample)
            for group in groups.values():
                self._forward(kind, group)

    def _forward(self, kind: str, samples: list[Loaded]) -> None:
        pictures = torch.from_numpy(np.stack([sample.image for sample in samples]))  # [B,H,W,3]
        image = pictures.to(self.device).permute(0, 3, 1, 2).float().div(255)
        found = make_maps(self.networks[kind], image)[:, 0].mul(255).round().byte().cpu().numpy()
        for sample, values in zip(samples, found, strict=True):
            sample.maps[kind] = values


def write_shard(
    path: Path, rows: Iterable[IndexRow], source: Source, maps: MapMaker, size: int | None, raw: bool
) -> tuple[Shard, list[Problem]]:
    """Write a shard, whole or not at all; `size` and `raw` are those of prepare.Settings.

    Returns what is in it, and the samples that were left out. Raises UserError if it cannot be written.
    """
    problems: list[Problem] = []
    samples = _samples(_chunks(rows, source, size, problems), maps)
    try:
        with new_file(path) as file:
            labels = _write_samples(file, path.stem, samples, raw)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    counts = {name: labels[name] for name in LABELS}
    return Shard(path.name, path.stat().st_size, labels.total(), len(problems), counts), problems


def _webdataset() -> Any:
    """Return the library webdataset; raises UserError, which says what to install, without it."""
    try:
        import webdataset
    except ImportError:
        raise UserError("shards are written by the package webdataset: pip install 'rfft[data]'") from None
    return webdataset


def _write_samples(file: IO[bytes], stem: str, samples: Iterable[Loaded], raw: bool) -> Counter[str]:
    """Fill a tar file; returns the number of samples of each class."""
    labels: Counter[str] = Counter()
    with _webdataset().TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
        for number, loaded in enumerate(samples):
            tar.write(encode_sample(f"{stem}-{number:06}", _feedback(loaded), raw, loaded.originals))
            labels[LABELS[loaded.row.label]] += 1
    return labels


def _samples(chunks: Iterable[list[Loaded]], maps: MapMaker) -> Iterator[Loaded]:
    for chunk in chunks:
        maps.fill(chunk)
        yield from chunk


def _feedback(loaded: Loaded) -> Feedback:
    row = loaded.row
    sample = FeedbackPicture(loaded.image, loaded.product, loaded.maps["depth"], loaded.maps["saliency"])
    return Feedback(row.name, row.label, row.caption, row.prompt, sample)


def _chunks(
    rows: Iterable[IndexRow], source: Source, size: int | None, problems: list[Problem]
) -> Iterator[list[Loaded]]:
    """Yield samples with their pictures, as many at a time as memory may hold."""
    chunk: list[Loaded] = []
    pixels = 0
    for row in rows:
        try:
            chunk.append(_load(row, source, size))
        except BrokenFile as error:
            problems.append(Problem(row.name, str(error)))
            continue
        pixels += chunk[-1].image.shape[0] * chunk[-1].image.shape[1]
        if len(chunk) == CHUNK_SAMPLES or pixels >= CHUNK_PIXELS:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def _load(row: IndexRow, source: Source, size: int | None) -> Loaded:
    """Read, check and decode all pictures of a sample; raises BrokenFile with the file's name."""
    target = (size, size) if size else None
    shape: tuple[int, int] | None = None
    pixels: dict[str, Pixels] = {}
    originals: dict[str, bytes] = {}
    for kind, entry in {"image": row.image, "product": row.product, **row.maps}.items():
        try:
            data = source.read(entry)
            header = read_header(data)
            shape = shape or _checked(header.size)
            if not _alike(header.size, shape):
                raise BrokenFile(f"its shape {header.size} is not the picture's, {shape}")
            pixels[kind] = decode(header, MODES[kind], target or shape)
        except BrokenFile as error:
            raise BrokenFile(f"{entry}: {error}") from None
        if header.size == (target or shape):
            originals[f"{kind}.{EXTENSIONS[str(header.format)]}"] = data
    maps = {kind: pixels[kind] for kind in row.maps}
    return Loaded(row, pixels["image"], pixels["product"], maps, originals)


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < MIN_SIDE:
        raise BrokenFile(f"less than {MIN_SIDE} pixels wide or high")
    return size


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether two sizes have the same shape, whatever the resolution."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= ASPECT_TOLERANCE
