"""Shards as RFNet's training data: every sample to one reader, a resume anywhere, whatever the workers."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from rfft.errors import UserError
from rfft.feedback.dataset import Reading
from rfft.feedback.folder import FeedbackPicture
from rfft.feedback.shard_format import Feedback, Manifest, Shard, encode_sample
from rfft.feedback.shard_stream import ShardPictures
from rfft.rfnet.data import are_shards, batches, open_shards
from rfft.rfnet.schema import MapsConfig
from rfft.types import LABELS

COUNT = 30


def feedback(number: int) -> Feedback:
    """Left half black, right half 8 x number; the maps differ from each other."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 8 * number
    grey = [np.full((16, 16), value, np.uint8) for value in (10, 20)]
    product = np.full((16, 16, 4), 255, np.uint8)
    return Feedback(f"{number}.png", number % 5, f"{number}", "", FeedbackPicture(image, product, *grey))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six shards of 3, 4, 5, 6, 7 and 5 samples."""
    manifest, number = Manifest({"known_maps": True}, 6, {}), 0
    for i, samples in enumerate((3, 4, 5, 6, 7, 5)):
        path = tmp_path / f"shard-{i}.tar"
        labels = dict.fromkeys(LABELS, 0)
        with path.open("wb") as file, webdataset.TarWriter(file, encoder=False) as tar:
            for _ in range(samples):
                tar.write(encode_sample(f"{number:03}", feedback(number), True, {}))
                labels[LABELS[number % 5]] += 1
                number += 1
        manifest.shards[i] = Shard(path.name, path.stat().st_size, samples, 0, labels)
    manifest.save(tmp_path)
    assert number == COUNT
    return tmp_path


def read(source, number: int | None = None) -> list[list[tuple[int, bool]]]:
    """Batches of captions and whether the picture was mirrored."""
    found = []
    for batch in islice(batches(source), number):
        names = [int(caption) for caption in batch["caption"]]
        right, left = batch["image"][:, 0, 0, 15], batch["image"][:, 0, 0, 0]
        assert torch.equal(right + left, torch.tensor([8 * name for name in names], dtype=torch.uint8))
        found.append([(name, bool(x > 0)) for name, x in zip(names, left, strict=True)])
    return found


def names(found: list[list[tuple[int, bool]]]) -> list[int]:
    return [name for batch in found for name, _ in batch]


def test_items_are_those_of_folders(folder: Path) -> None:
    pictures = ShardPictures([str(folder)], 8)
    assert pictures.counts == [6] * 5 and ShardPictures([str(folder)], 8, coarse=True).counts == [6, 24]
    batch = next(iter(pictures.once(Reading(4))))
    assert {name: tuple(batch[name].shape) for name in ("image", "product", "depth", "saliency")} == {
        "image": (4, 3, 8, 8),
        "product": (4, 4, 8, 8),
        "depth": (4, 1, 8, 8),
        "saliency": (4, 1, 8, 8),
    }
    assert (batch["depth"] == 10).all() and (batch["saliency"] == 20).all()
    assert batch["image"][3, :, 0, 7].tolist() == [24] * 3
    assert batch["label"].tolist() == [0, 1, 2, 3]
    coarse = next(iter(ShardPictures([str(folder)], 8, coarse=True).once(Reading(4))))
    assert coarse["label"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_round_has_every_picture_once(folder: Path, workers: int) -> None:
    pictures = ShardPictures([str(folder)], 16)
    parts = [read(pictures.once(Reading(4, workers, process, 2))) for process in (0, 1)]
    assert sorted(names(parts[0]) + names(parts[1])) == list(range(COUNT))
    assert names(read(pictures.once(Reading(9, 0, 6, 7)))) == []  # more processes than shards


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_resume_anywhere_goes_on_as_if_uninterrupted(folder: Path, workers: int) -> None:
    pictures = ShardPictures([str(folder)], 16)
    reading = Reading(2, workers, process=1, processes=2)
    whole = read(pictures.endless(reading, 0, seed=5, mirror=True), 24)  # three epochs
    for first in (1, 7, 20):
        again = read(pictures.endless(reading, first, seed=5, mirror=True), 24 - first)
        assert again == whole[first:], first
    assert 6 < sum(flipped for batch in whole for _, flipped in batch) < 42
    assert read(pictures.endless(reading, 0, seed=6, mirror=True), 24) != whole


def test_every_epoch_has_every_picture_once_in_another_order(folder: Path) -> None:
    pictures = ShardPictures([str(folder)], 16)
    seen = names(read(pictures.endless(Reading(3), 0, seed=0, mirror=False), 20))
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT:]) == list(range(COUNT))
    assert seen[:COUNT] != seen[COUNT:]
    first = seen.index(20)  # a shard's own samples are shuffled, too
    shard = [name for name in seen[:COUNT] if 18 <= name < 25]
    assert first < COUNT and shard != sorted(shard)


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    pictures = ShardPictures([str(folder)], 16)
    with pytest.raises(UserError, match="6 shards are too few for 8 readers .4 processes x 2 workers."):
        pictures.endless(Reading(2, 2, 0, 4), 0, 0, False)
    with pytest.raises(UserError, match="holds shards and .* does not"):
        are_shards([str(folder), "elsewhere"])
    assert are_shards([str(folder)]) and not are_shards(["elsewhere"])
    with pytest.raises(UserError, match="prepare it with --no-known-maps --depth rf-tiny-depth"):
        open_shards([str(folder)], 16, MapsConfig(known=False), coarse=False)

    (folder / "shard-0.tar").write_bytes((folder / "shard-0.tar").read_bytes()[:1000])
    for workers in (0, 1):
        with pytest.raises(
            UserError, match=r"^[^\n]*shard-0\.tar: 1000 bytes instead of \d+; prepare it again$"
        ):
            read(pictures.once(Reading(2, workers)))
    (folder / "shard-0.tar").unlink()
    with pytest.raises(UserError, match=r"shard-0\.tar cannot be read: No such file"):
        read(pictures.once(Reading(2)))


def claims(size: int, kind: bytes = tarfile.REGTYPE, **pax: str) -> bytes:
    member = tarfile.TarInfo("0.npy")
    member.size, member.type, member.pax_headers = size, kind, pax
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) + bytes(1024)


def linked(kind: bytes) -> bytes:
    """A member and a link to it: many of them would be read as many times."""
    member, link = tarfile.TarInfo("0.npy"), tarfile.TarInfo("1.npy")
    member.size, link.type, link.linkname = 512, kind, member.name
    return member.tobuf() + bytes(512) + link.tobuf() + bytes(1024)


HARM = [
    (gzip.compress, "cannot be read"),
    (lzma.compress, "cannot be read"),
    (lambda whole: claims(2**40), "0.npy claims 1099511627776 bytes"),
    (lambda whole: claims(-1024), "cannot be read"),
    (lambda whole: claims(0, **{"GNU.sparse.size": str(2**40), "GNU.sparse.map": ""}), "cannot be read"),
    (lambda whole: linked(tarfile.LNKTYPE), "1.npy is no plain file"),
    (lambda whole: linked(tarfile.SYMTYPE), "1.npy is no plain file"),
    (lambda whole: b"x" * len(whole), "cannot be read"),
    (lambda whole: whole[: len(whole) // 2], "cannot be read|samples instead of 3"),
    (lambda whole: b"", "cannot be read"),
]


def test_a_shard_takes_no_more_memory_than_it_has_bytes(folder: Path) -> None:
    """Whatever lies there, with a manifest that was made to fit."""
    shard, manifest = folder / "shard-0.tar", json.loads((folder / "manifest.json").read_text())
    whole = shard.read_bytes()
    for harm, message in HARM:
        shard.write_bytes(harm(whole))
        manifest["shards"]["0"]["bytes"] = shard.stat().st_size
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=rf"^[^\n]*shard-0\.tar[^\n]*({message})[^\n]*prepare it again$"):
            ShardPictures([str(folder)], 16).shards[0].members()


def test_another_shard_under_its_name(folder: Path) -> None:
    shard, other = ShardPictures([str(folder)], 16).shards[:2]
    with pytest.raises(UserError, match=r"shard-1\.tar: 4 samples instead of 3"):
        replace(other, samples=shard.samples).members()


def test_an_items_pixels_are_the_samples(folder: Path) -> None:
    rng = np.random.default_rng(0)
    image, product, depth, saliency = (
        rng.integers(0, 256, (16, 16, *channels), dtype=np.uint8) for channels in ((3,), (4,), (), ())
    )
    sample = Feedback("a.png", 2, "vase", "", FeedbackPicture(image, product, depth, saliency))
    item = ShardPictures([str(folder)], 16).item(encode_sample("a", sample, True, {}))
    for kind, pixels in (("image", image), ("product", product)):
        assert np.array_equal(item[kind].permute(1, 2, 0), pixels)
    assert np.array_equal(item["depth"][0], depth) and np.array_equal(item["saliency"][0], saliency)
