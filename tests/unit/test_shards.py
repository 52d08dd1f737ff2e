"""Shards: samples come back as they went in, each to one reader, and damage is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset

from rfft.data.feedback import Sample
from rfft.data.shard_format import Feedback, Manifest, Shard, decode_sample, encode_sample, read_manifest
from rfft.data.shards import collate, load_batches, read_shards
from rfft.errors import UserError
from rfft.types import LABELS


def feedback(number, side=16):
    rng = np.random.default_rng(number)
    pixels = [rng.integers(0, 256, (side, side, *rest), dtype=np.uint8) for rest in ((3,), (4,), (), ())]
    return Feedback(f"{number}.png", number % 5, f"vase ü {number}", "in a park", Sample(*pixels))


@pytest.fixture
def shards(tmp_path):
    """Five shards of 7 samples, 0 to 34, raw."""
    manifest = Manifest({}, 5, {"unsuitable": 2, "broken": 1})
    for number in reversed(range(5)):  # they are done in any order
        path = tmp_path / f"shard-{number}.tar"
        with path.open("wb") as file, webdataset.TarWriter(file, encoder=False) as tar:
            for i in range(7 * number, 7 * number + 7):
                tar.write(encode_sample(f"{i:03}", feedback(i), True, {}))
        labels = dict.fromkeys(LABELS, 0) | {"available": 7}
        manifest.shards[number] = Shard(path.name, path.stat().st_size, 7, 0, labels)
    manifest.save(tmp_path)
    return tmp_path


def numbers(items):
    return [int(item.name.removesuffix(".png")) for item in items]


@pytest.mark.parametrize("raw", [True, False])
def test_a_sample_comes_back(raw):
    before = feedback(3)
    ramp = np.repeat(np.linspace(40, 200, 16).astype(np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    before = replace(before, sample=replace(before.sample, image=ramp))
    members = encode_sample("k", before, raw, {})
    after = decode_sample(members)
    assert (after.name, after.label, after.caption, after.prompt) == ("3.png", 3, "vase ü 3", "in a park")
    for kind in ("product", "depth", "saliency"):  # lossless in both forms
        assert np.array_equal(getattr(after.sample, kind), getattr(before.sample, kind))
    error = np.abs(after.sample.image.astype(int) - before.sample.image)
    assert error.max() <= (0 if raw else 4)  # JPEG
    assert set(members) == {"__key__", "json"} | (
        {"npy"} if raw else {"image.jpg", "product.png", "depth.png", "saliency.png"}
    )


def test_originals_go_in_untouched():
    sample = feedback(0)
    png = encode_sample("k", sample, False, {})["product.png"]
    members = encode_sample("k", sample, False, {"image.png": png, "product.png": png})
    assert members["image.png"] is png and "image.jpg" not in members
    assert np.array_equal(decode_sample(members).sample.image, sample.sample.product[..., :3])


def test_pictures_are_read_at_any_size():
    grey = np.full((16, 16), 60, np.uint8)
    flat = Sample(np.full((16, 16, 3), 60, np.uint8), np.full((16, 16, 4), 255, np.uint8), grey, grey)
    for raw in (True, False):
        sample = decode_sample(encode_sample("k", replace(feedback(0), sample=flat), raw, {}), 8).sample
        assert sample.image.shape == (8, 8, 3) and sample.product.shape == (8, 8, 4)
        assert sample.depth.tolist() == [[60] * 8] * 8 and (sample.product == 255).all()


@pytest.mark.parametrize(
    "harm",
    [
        {"json": b"{"},
        {"json": b'{"name": "a", "label": "fine", "caption": "", "prompt": ""}'},
        {"npy": b""},
        {"npy": b"\x80\x04N."},  # a pickle
        {"npy": encode_sample("k", feedback(0), True, {})["npy"][:500]},
    ],
)
def test_a_damaged_sample_is_named(harm):
    members = {**encode_sample("k7", feedback(0), True, {}), "__url__": "shard-3.tar", **harm}
    with pytest.raises(UserError, match=r"shard-3.tar: sample k7 is damaged"):
        decode_sample(members)


def test_in_order_and_shuffled(shards):
    assert numbers(read_shards(shards)) == list(range(35))
    first, again = (numbers(read_shards(shards, shuffle=10, seed=1)) for _ in range(2))
    other = numbers(read_shards(shards, shuffle=10, seed=2))
    assert first == again != other and sorted(first) == sorted(other) == list(range(35))
    assert sorted(first[:7]) != first[:7] and first[:7] != other[:7]


def test_ranks_and_workers_share_the_samples(shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("NUM_WORKERS", "2")
    seen = []
    for reader in range(4):
        monkeypatch.setenv("RANK", str(reader // 2))
        monkeypatch.setenv("WORKER", str(reader % 2))
        part = numbers(read_shards(shards, shuffle=5))
        assert len(part) == (14 if reader == 0 else 7)
        seen += part
    assert sorted(seen) == list(range(35))


def test_dataloader_workers_read_each_sample_once(shards):
    batches = list(load_batches(read_shards(shards, shuffle=5), 4, workers=2))
    assert sorted(caption for batch in batches for caption in batch.caption) == sorted(
        f"vase ü {i}" for i in range(35)
    )


def test_repeating_readers_see_everything_in_new_orders(shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    stream = iter(read_shards(shards, shuffle=5, repeat=True))
    seen = numbers(next(stream) for _ in range(300))  # 14 samples of each round: all shards come by
    assert set(seen) == set(range(35)) and seen[:14] != seen[14:28]
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UserError, match="5 shards are too few for 6 readers"):
        next(iter(read_shards(shards, repeat=True)))


def test_batches(shards):
    batch = next(iter(load_batches(read_shards(shards), 4)))
    assert batch.image.shape == (4, 3, 16, 16) and batch.product.shape == (4, 4, 16, 16)
    assert batch.depth.shape == batch.saliency.shape == (4, 1, 16, 16)
    assert batch.image.dtype == torch.uint8 and batch.label.tolist() == [0, 1, 2, 3]
    known = feedback(2).sample
    assert np.array_equal(batch.image[2].permute(1, 2, 0), known.image)
    assert np.array_equal(batch.saliency[2, 0], known.saliency)
    assert not np.array_equal(batch.saliency[2, 0], known.depth)
    with pytest.raises(UserError, match="pictures of several sizes"):
        collate([feedback(0), feedback(1, side=8)])


def test_the_manifest_counts(shards):
    manifest = read_manifest(shards)
    assert (manifest.samples, manifest.labels()["available"]) == (35, 35)
    content = json.loads((shards / "manifest.json").read_text())
    assert (content["complete"], content["samples"]) == (True, 35)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planned": 6}, "5 of 6 shards are there"),
        ({"format": "x"}, "written in another form"),
        ({"shards": {"0": {}}}, "damaged"),
        ({"shards": {"0": {"file": "../a", "bytes": 1, "samples": 1, "broken": 0, "labels": {}}}}, "outside"),
    ],
)
def test_a_folder_that_cannot_be_read(shards, change, message):
    file = shards / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_shards(shards)
