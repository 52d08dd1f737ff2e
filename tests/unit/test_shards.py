"""Shards: samples come back as they went in, and damage is named."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from rfft.errors import UserError
from rfft.feedback.folder import FeedbackPicture
from rfft.feedback.shard_format import (
    Feedback,
    Manifest,
    Shard,
    decode_sample,
    encode_sample,
    read_complete,
    read_manifest,
)
from rfft.types import LABELS


def feedback(number, side=16):
    rng = np.random.default_rng(number)
    pixels = [rng.integers(0, 256, (side, side, *rest), dtype=np.uint8) for rest in ((3,), (4,), (), ())]
    return Feedback(f"{number}.png", number % 5, f"vase ü {number}", "in a park", FeedbackPicture(*pixels))


@pytest.fixture
def shards(tmp_path):
    """The manifest of five shards of 7 samples."""
    manifest = Manifest({}, 5, {"unsuitable": 2, "broken": 1})
    for number in reversed(range(5)):  # they are done in any order
        labels = dict.fromkeys(LABELS, 0) | {"available": 7}
        manifest.shards[number] = Shard(f"shard-{number}.tar", 1, 7, 0, labels)
    manifest.save(tmp_path)
    return tmp_path


def array(shape, content=b"", dtype="|u1", order=False):
    """An .npy file whose header promises whatever is asked for."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


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
    flat = FeedbackPicture(
        np.full((16, 16, 3), 60, np.uint8), np.full((16, 16, 4), 255, np.uint8), grey, grey
    )
    for raw in (True, False):
        sample = decode_sample(encode_sample("k", replace(feedback(0), sample=flat), raw, {}), 8).sample
        assert sample.image.shape == (8, 8, 3) and sample.product.shape == (8, 8, 4)
        assert sample.depth.tolist() == [[60] * 8] * 8 and (sample.product == 255).all()


HARM = [
    {"json": b"{"},
    {"json": b'{"name": "a", "label": "fine", "caption": "", "prompt": ""}'},
    {"npy": b""},
    {"npy": b"\x80\x04N."},  # a pickle
    {"npy": encode_sample("k", feedback(0), True, {})["npy"][:500]},
    {"npy": array((100_000, 100_000, 9))},  # 90 GB in 128 bytes
    {"npy": array((-4, -4, 9), bytes(144))},
    {"npy": array((4, 4, 9), bytes(145))},
    {"npy": array((4, 4, 3), bytes(48))},
    {"npy": array((4, 4, 9), bytes(288), dtype="<u2")},
    {"npy": array((4, 4, 9), bytes(144), order=True)},
    {"npy": array((4, 4, 9), bytes(1152), dtype="|O")},
    {"json": b"[" * 100_000},
    {"json": b'{"name": 1, "label": "available", "caption": [], "prompt": ""}'},
]


def test_a_damaged_sample_is_named():
    for harm in HARM:
        members = {**encode_sample("k7", feedback(0), True, {}), "__url__": "shard-3.tar", **harm}
        with pytest.raises(UserError, match=r"shard-3.tar: sample k7 is damaged"):
            decode_sample(members)


def test_the_manifest_counts(shards):
    manifest = read_manifest(shards)
    assert (manifest.samples, manifest.labels()["available"]) == (35, 35)
    content = json.loads((shards / "manifest.json").read_text())
    assert (content["complete"], content["samples"]) == (True, 35)


WRONG_MANIFESTS = [
    ({"planned": 6}, "5 of 6 shards are there"),
    ({"format": "x"}, "written in another form"),
    ({"shards": {"0": {}}}, "damaged"),
    ({"shards": {"0": {"file": "../a", "bytes": 1, "samples": 1, "broken": 0, "labels": {}}}}, "outside"),
]


def test_a_folder_that_cannot_be_read(shards):
    file = shards / "manifest.json"
    good = json.loads(file.read_text())
    for change, message in WRONG_MANIFESTS:
        file.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=message):
            read_complete(shards)
