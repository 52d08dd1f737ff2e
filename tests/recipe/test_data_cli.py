"""`rfft data`: packages become shards, however often the run is cut off; pictures become feedback."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from rfft.adworld.draw import draw_dataset
from rfft.feedback import prepare
from rfft.feedback.folder import read_feedback
from rfft.feedback.shard_format import Feedback, decode_sample, read_manifest
from rfft.feedback.shard_stream import ShardPictures
from rfft.rewards.maps import MapNet

Rfft = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def rfft(run_command: Callable[..., tuple[int, str, str]]) -> Rfft:
    """rfft(*arguments) -> (exit code, lines of stdout and stderr)."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        code, out, err = run_command(*arguments)
        return code, (out + err).splitlines()

    return run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 scenes of AdWorld; number 4 is unsuitable, the picture of 5 is broken, 6 lacks its product."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    draw_dataset(folder, 30, seed=3, workers=1)
    labels = (folder / "label.txt").read_text().splitlines()
    labels[4] = "\t2\t".join(labels[4].split("\t")[::2])
    (folder / "label.txt").write_text("\n".join(labels))
    (folder / "images/0000005.png").write_bytes((folder / "images/0000005.png").read_bytes()[:999])
    (folder / "products/0000006.png").unlink()
    return folder


def samples(folder: Path, size: int | None = None) -> list[Feedback]:
    shards = ShardPictures([str(folder)], 16).shards
    return [decode_sample(members, size) for shard in shards for members in shard.members()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_adworld_becomes_shards(rfft: Rfft, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    options = ("--size", 64, "--raw", "--shard-size", 8)
    code, lines = rfft("data", "prepare-rf1m", scenes, out, *options, "--workers", 2)
    assert code == 0, lines
    assert (
        lines[-1].startswith("27 samples in 4 shards") and "1 unsuitable, 1 no_product, 1 broken" in lines[-1]
    )
    (broken,) = (json.loads(line) for line in (out / "broken.jsonl").read_text().splitlines())
    assert broken["name"] == "0000005.png" and "images/0000005.png: damaged picture" in broken["reason"]
    assert sorted(path.name for path in out.iterdir()) == [
        "broken.jsonl",
        "manifest.json",
        *(f"shard-{i:06}.tar" for i in range(4)),
    ]

    known = {record.name: record for record in read_feedback(scenes)}
    seen = samples(out)
    assert {item.name for item in seen} == set(known) - {"0000005.png", "0000006.png"}
    for item in seen:
        record, sample = known[item.name], known[item.name].load()
        assert (item.label, item.caption, item.prompt) == (record.label, record.caption, record.prompt)
        for kind in ("image", "product", "depth", "saliency"):  # the known maps are kept
            assert np.array_equal(getattr(item.sample, kind), getattr(sample, kind)), kind

    for options_of_bench in ((), ("--size", 32)):
        code, lines = rfft("data", "bench", out, "--seconds", 0, *options_of_bench)
        assert code == 0 and "samples/s (64 in" in lines[0] and "per core" in lines[1]
    code, lines = rfft("data", "prepare-rf1m", scenes, out, *options[:2], "--shard-size", 8)
    assert code == 2 and "begun with raw=True, now False; name a new folder" in lines[-1]


def test_a_run_that_was_cut_off_goes_on(
    rfft: Rfft, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("data", "prepare-rf1m", scenes, tmp_path / "cut", "--shard-size", 8, "--workers", 1)
    whole = ("data", "prepare-rf1m", scenes, tmp_path / "whole", "--shard-size", 8, "--workers", 1)
    assert rfft(*whole)[0] == 0

    real, done = prepare.write_job, []

    def dies(job: prepare.Job) -> object:
        if len(done) == 2:
            (job.out / f".shard-{job.number:06}.tar.part").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        done.append(job.number)
        return real(job)

    monkeypatch.setattr(prepare, "write_job", dies)
    assert rfft(*command)[0] == 130
    out = tmp_path / "cut"
    manifest = read_manifest(out)
    assert sorted(manifest.shards) == [0, 1] and not manifest.complete
    assert rfft("data", "bench", out) == (
        2,
        [f"rfft: {out}: 2 of 4 shards are there; the command that began it goes on"],
    )
    with (out / "broken.jsonl").open("a") as file:  # a shard that was not entered any more, and a torn line
        file.write('{"name": "x", "reason": "y", "shard": 3}\n{"name": "0000')
    (out / "shard-000001.tar").write_bytes(b"damaged")  # found by its size
    written = (out / "shard-000000.tar").stat().st_mtime_ns
    monkeypatch.setattr(prepare, "write_job", real)
    assert rfft(*command)[0] == 0
    assert (out / "shard-000000.tar").stat().st_mtime_ns == written
    ours, theirs = contents(out), contents(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.endswith((".tar", ".jsonl")))
    code, lines = rfft(*command)  # nothing left to do
    assert code == 0 and lines[-1].startswith("27 samples in 4 shards")


def packages(folder: Path, side: int = 40) -> Path:
    """Official packages as we take them to be: archives of JPEGs, label.txt, and RGBA pictures of some."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (
        zipfile.ZipFile(folder / "train_images_1.zip", "w") as first,
        zipfile.ZipFile(folder / "train_images_2.zip", "w") as second,
        zipfile.ZipFile(folder / "RGBA_subset.zip", "w", zipfile.ZIP_DEFLATED) as rgba,
    ):
        for i in range(8):
            jpeg, png = io.BytesIO(), io.BytesIO()
            pixels = cv2.resize(rng.integers(0, 256, (4, 4, 4), dtype=np.uint8), (side, side))
            Image.fromarray(pixels[..., :3]).save(jpeg, "JPEG")
            Image.fromarray(pixels).resize((side // 2,) * 2).save(png, "PNG")
            (first if i < 4 else second).writestr(f"train/{i}.jpg", jpeg.getvalue())
            if i < 6:
                rgba.writestr(f"{i}.png", png.getvalue())
        rgba.writestr("../7.png", bytes(4 * 2**20))  # a bomb, and a name that would lead out
        rgba.writestr(
            "label.txt", "".join(f"train/{i}.jpg\t{c}\t商品 {i}\n" for i, c in enumerate("12345613"))
        )
    return folder


def test_official_packages(rfft: Rfft, tmp_path: Path) -> None:
    source, out = packages(tmp_path / "packages"), tmp_path / "shards"
    code, lines = rfft("data", "prepare-rf1m", source, out, "--workers", 1)
    assert code == 0, lines
    assert "1 unsuitable, 1 no_product, 1 broken" in lines[-1]
    assert "decompression bomb" in (out / "broken.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages", "shards"]
    seen = {item.name: item for item in samples(out)}
    assert {name: item.label for name, item in seen.items()} == {
        "0.jpg": 0,
        "2.jpg": 1,
        "3.jpg": 2,
        "4.jpg": 3,
        "5.jpg": 4,
    }
    assert seen["4.jpg"].caption == "商品 4"
    networks = {kind: MapNet.from_pretrained(f"rf-tiny-{kind}") for kind in ("depth", "saliency")}
    with zipfile.ZipFile(source / "train_images_2.zip") as archive:
        original = np.asarray(Image.open(io.BytesIO(archive.read("train/4.jpg"))))
    sample = seen["4.jpg"].sample
    assert np.array_equal(sample.image, original)  # not encoded a second time
    assert sample.product.shape == (40, 40, 4)  # the product was half as large
    for kind, network in networks.items():
        with torch.inference_mode():
            expected = network(torch.from_numpy(original.copy()).permute(2, 0, 1)[None].float() / 255)[0, 0]
        assert np.abs(getattr(sample, kind) - expected.numpy() * 255).max() < 0.6, kind  # rounding alone
    assert samples(out, 16)[0].sample.image.shape == (16, 16, 3)
    assert rfft("data", "bench", out) == (
        2,
        [f"rfft: {out}: its pictures were not made squares: give --size"],
    )


def test_generated_pictures_become_feedback(rfft: Rfft, world: Path, tmp_path: Path) -> None:
    photos, pictures = tmp_path / "photos", tmp_path / "pictures"
    photos.mkdir()
    rng = np.random.default_rng(1)
    for name in ("vase", "lamp", "chair"):
        rgba = rng.integers(0, 256, (120, 90, 4), dtype=np.uint8)
        rgba[..., 3] = 0
        rgba[20:100, 10:70, 3] = 255
        Image.fromarray(rgba).save(photos / f"{name}.png")
    (photos / "lamp.txt").write_text("lamp\u2028of brass", encoding="utf-8")  # pasted from a web page
    (tmp_path / "prompts.json").write_text('[{"prompt": "a park", "image_scale": 0.6}]')
    generate = (
        "--config",
        world / "config.yaml",
        "--products",
        photos,
        "--prompts",
        tmp_path / "prompts.json",
    )
    assert rfft("generate", *generate, "--out", pictures, "--max-attempts", 1)[0] == 0

    for name in ("vase", "lamp", "chair"):
        picture, product = (
            np.asarray(Image.open(pictures / kind / f"{name}.png")) for kind in ("images", "products")
        )
        solid = product[..., 3] == 255
        assert product.shape == (*picture.shape[:2], 4) and solid.sum() == 80 * 60
        assert np.array_equal(picture[solid], product[solid][:, :3])

    labels = tmp_path / "labels.csv"
    labels.write_text("label,name\n1,vase\nsize_mismatch,lamp.png\n")
    feedback, shards = tmp_path / "feedback", tmp_path / "shards"
    code, lines = rfft("data", "label", pictures, labels, feedback)
    assert code == 0 and [line.split() for line in lines] == [
        ["available", "1"],
        ["size_mismatch", "1"],
        ["unlabelled", "1"],
    ]
    assert [(r.name, r.label, r.caption, r.prompt) for r in read_feedback(feedback)] == [
        ("vase.png", 0, "vase", "a park"),
        ("lamp.png", 2, "lamp of brass", "a park"),
    ]
    assert rfft("data", "prepare-rf1m", feedback, shards, "--workers", 1)[0] == 0
    seen = {item.name: item for item in samples(shards)}
    assert np.array_equal(seen["lamp.png"].sample.image, np.asarray(Image.open(pictures / "images/lamp.png")))
    assert seen["lamp.png"].prompt == "a park" and seen["vase.png"].sample.depth.any()

    mistakes: dict[str, tuple[str, str]] = {
        "gone.csv": ("name,label\nchairs,1\n", "gone.csv:2: 'chairs' is none of the pictures"),
        "twice.csv": ("name,label\nvase,1\nvase.png,3\n", "twice.csv:3: vase.png occurs twice"),
        "code.csv": ("name,label\nvase,7\n", "code.csv:2: label '7' is none of"),
        "columns.csv": ("a,b\nvase,1\n", "needs the columns name and label"),
        "empty.txt": ("\n", "no label in it"),
        "lines.txt": ("vase\t1\nlamp\n", "lines.txt:2: expected name, label"),
    }
    for name, (text, message) in mistakes.items():
        (tmp_path / name).write_text(text)
        code, lines = rfft("data", "label", pictures, tmp_path / name, tmp_path / "new")
        assert code == 2 and len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "new").exists()


def test_mistakes_leave_nothing(rfft: Rfft, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    before = sorted(tmp_path.rglob("*"))
    prepare, out = ("data", "prepare-rf1m"), tmp_path / "out"
    for arguments, message in (
        ((*prepare, tmp_path / "gone", out), "no such folder or zip archive"),
        ((*prepare, tmp_path / "empty", out), "no label.txt in it"),
        ((*prepare, scenes, tmp_path / "full"), "exists already; name a new one"),
        ((*prepare, scenes, out, "--raw"), "--raw needs --size"),
        ((*prepare, scenes, out, "--depth", "nowhere"), "nowhere: no such network"),
        (("data", "bench", tmp_path / "empty"), "no manifest.json"),
        (("data", "label", tmp_path / "empty", out, out), "give a folder that `rfft generate` wrote"),
    ):
        code, lines = rfft(*arguments)
        assert code == 2 and lines[-1].startswith("rfft: ") and message in lines[-1], lines
        assert sorted(tmp_path.rglob("*")) == before
