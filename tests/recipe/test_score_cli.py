"""`rfft score` and the function behind it: RFNet's verdicts on pictures, whoever painted them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from rfft import build
from rfft.config.load import load_config
from rfft.errors import UserError
from rfft.feedback.dataset import FeedbackDataset
from rfft.feedback.folder import read_feedback
from rfft.generation.sample import reward_logits
from rfft.generation.score import score
from rfft.generation.score_inputs import find_questions, load_pair
from rfft.types import LABELS

Rfft = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """photos/ and cutouts/ of three pictures of several shapes."""
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (80, 60), "b": (64, 64), "c": (50, 90)}.items():
        for folder, channels in (("photos", 3), ("cutouts", 4)):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_picture_gets_the_verdict_that_training_and_generation_give_it(world: Path) -> None:
    config = load_config(world / "config.yaml", ["data.count=3"])
    samples = build.build_samples(config, "train")
    bundle = build.build_bundle(config, "cpu", trained=False)
    batch = build.build_conditions(config, bundle, samples).index([0, 1, 2])
    rfnet = build.build_rfnet(config, "cpu")
    assert rfnet is not None
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = reward_logits(lambda x: rfnet(x, batch), images).softmax(-1)
    given = list(images), [s.canvas for s in samples], [s.caption for s in samples]
    for batch_size in (2, 16):
        verdicts = score(*given, rfnet=str(world / "rfnet"), batch_size=batch_size)
        found = torch.tensor([list(verdict.probabilities.values()) for verdict in verdicts])
        assert_close(found, expected, rtol=0, atol=1e-5)
    assert [verdict.label for verdict in verdicts] == [LABELS[i] for i in expected.argmax(1)]
    assert verdicts[0].probabilities["available"] == pytest.approx(expected[0, 0].item(), abs=1e-5)


def test_pictures_are_read_as_rfnets_training_reads_them(pairs: Path) -> None:
    (pairs / "photos").rename(pairs / "images")
    (pairs / "cutouts").rename(pairs / "products")
    (pairs / "label.txt").write_text("".join(f"{name}.png\t1\ta stool\n" for name in "abc"))
    items = FeedbackDataset(read_feedback(pairs), 48, {})
    for item, name in zip((items[i] for i in range(3)), "abc", strict=True):
        image, product = load_pair(pairs / f"images/{name}.png", pairs / f"products/{name}.png", 48)
        assert torch.equal(image, item["image"] / 255) and torch.equal(product, item["product"] / 255)


def test_what_generate_wrote(rfft: Rfft, world: Path, tmp_path: Path) -> None:
    """The same verdicts, but for the pictures' eight bits; captions come from the manifest."""
    ads, out = tmp_path / "ads", tmp_path / "new/verdicts.csv"
    generate = ("generate", "--config", world / "config.yaml", "--products", "adworld:test", "--out", ads)
    assert rfft(*generate, "--max-attempts", 1, "data.count=3")[0] == 0
    code, lines = rfft("score", ads, "--products", ads / "products", "--rfnet", world / "rfnet", "--out", out)
    written = [json.loads(line) for line in (ads / "manifest.jsonl").read_text().splitlines()]
    accepted = sum(row["accepted"] for row in written)
    assert code == 0 and lines[-1].startswith(f"RFNet accepts {accepted} of 3 pictures (")
    assert "95 % interval" in lines[-1] and lines[-1].endswith(f"written: {out}")
    rows = rows_of(out)
    assert list(rows[0]) == ["picture", "label", "accepted", *LABELS]
    for row, expected in zip(rows, written, strict=True):
        assert row["picture"] == str(ads / expected["image"])
        assert row["accepted"] == str(expected["accepted"]).lower()
        found = {label: float(row[label]) for label in LABELS}
        assert found == pytest.approx(expected["probabilities"], abs=0.02)
        assert row["label"] == max(found, key=found.__getitem__)
    questions = find_questions([ads], ads / "products")
    assert [q.caption for q in questions] == [row["caption"] for row in written]


def test_captions_without_a_manifest(pairs: Path) -> None:
    (pairs / "cutouts/a.txt").write_text("oak stool, 45 cm\n")
    (pairs / "cutouts/b.png").rename(pairs / "cutouts/tall-lamp_2.png")
    (pairs / "photos/b.png").rename(pairs / "photos/tall-lamp_2.png")
    questions = find_questions([pairs / "photos/a.png", pairs / "photos/tall-lamp_2.png"], pairs / "cutouts")
    assert [question.caption for question in questions] == ["oak stool, 45 cm", "tall lamp"]


def test_pictures_that_cannot_be_used(rfft: Rfft, world: Path, pairs: Path) -> None:
    """Each is named; it stops the command, or is left out and listed."""
    photos, cutouts, out = pairs / "photos", pairs / "cutouts", pairs / "verdicts.csv"
    (photos / "broken.png").write_bytes(b"no picture")
    shutil.copy(cutouts / "a.png", photos / "cutout.png")
    shutil.copy(photos / "b.png", photos / "alone.png")
    shutil.copy(photos / "b.png", photos / "opaque.png")
    shutil.copy(photos / "c.png", photos / "wide.png")
    for name, source in (("broken", cutouts / "a.png"), ("cutout", cutouts / "a.png")):
        shutil.copy(source, cutouts / f"{name}.png")
    shutil.copy(photos / "b.png", cutouts / "opaque.png")
    shutil.copy(cutouts / "a.png", cutouts / "wide.png")
    command = ("score", photos, "--products", cutouts, "--rfnet", world / "rfnet", "--out", out)
    code, lines = rfft(*command)
    assert code == 2 and lines[-1] == f"rfft: {photos}/alone.png: no product of the name 'alone' is there"
    assert not out.exists()
    code, lines = rfft(*command, "--on-error", "skip", "--batch-size", 2)
    assert code == 0 and "RFNet accepts" in lines[-1] and "of 3 pictures" in lines[-1]
    assert [Path(row["picture"]).stem for row in rows_of(out)] == ["a", "b", "c"]
    listed = [json.loads(line) for line in (pairs / "verdicts.skipped.jsonl").read_text().splitlines()]
    reasons = {Path(row["id"]).stem: row["reason"] for row in listed}
    assert reasons == {
        "alone": f"{photos}/alone.png: no product of the name 'alone' is there",
        "broken": f"{photos}/broken.png: not a readable image",
        "cutout": f"{photos}/cutout.png: transparent in places; give the finished picture, not the cutout",
        "opaque": reasons["opaque"],
        "wide": f"{cutouts}/wide.png is 80 x 60 pixels, its picture 50 x 90: give the product as it lies in "
        "the picture, on a canvas of the same shape",
    }
    assert reasons["opaque"].startswith(f"{cutouts}/opaque.png: image without alpha")
    assert "pictures left out: 5, listed in" in " ".join(lines)
    code, lines = rfft(*command)
    assert code == 2 and lines[-1] == f"rfft: {out}: exists already; name a new file with --out"


def test_mistakes(rfft: Rfft, world: Path, pairs: Path, tmp_path: Path) -> None:
    photos, cutouts, out = pairs / "photos", pairs / "cutouts", pairs / "verdicts.csv"
    unknown, empty = tmp_path / "unknown", tmp_path / "empty"
    shutil.copytree(world / "rfnet", unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"depth": None}))
    empty.mkdir()
    for arguments, message in (
        ((empty, "--products", cutouts), f"{empty}: no pictures here"),
        ((photos, "--products", empty), f"{empty}: no products here"),
        ((photos, "--products", cutouts, "--rfnet", unknown), "made its depth maps: name it with --depth"),
        ((photos, "--products", cutouts, "--rfnet", "nobody/rfnet"), "neither a folder nor a hub id"),
        ((photos, "--products", cutouts, "--depth", "nowhere"), "nowhere: no such network"),
        ((tmp_path / "b.png", "--products", cutouts), f"{tmp_path}/b.png: no such image"),
        ((tmp_path / "c.gif", "--products", photos, "--on-error", "skip"), "none of 1 pictures can be used"),
    ):
        code, lines = rfft("score", *arguments, "--out", out)
        assert code == 2 and message in lines[-1] and lines[-1].startswith("rfft: "), lines
        assert not list(tmp_path.glob("*verdicts*"))


def test_in_python(world: Path, pairs: Path) -> None:
    """Paths, PIL pictures and tensors of one picture get one verdict; what is not finite is not accepted."""
    picture, product = pairs / "photos/a.png", pairs / "cutouts/a.png"
    opened = Image.open(picture), Image.open(product)
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in opened]
    floats = [tensor / 255 for tensor in tensors]
    broken = floats[0].clone()
    broken[0, 0, 0] = math.nan
    pictures = [str(picture), picture, opened[0], tensors[0], floats[0], broken]
    products = [str(product), product, opened[1], tensors[1], floats[1], floats[1]]
    *verdicts, last = score(pictures, products, ["a stool"] * 6, rfnet=str(world / "rfnet"))
    for verdict in verdicts:
        assert verdict.probabilities == pytest.approx(verdicts[0].probabilities, abs=1e-6)
        assert sum(verdict.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert verdict.accepted == (verdict.label == "available")
    assert (last.label, last.accepted) == ("not_finite", False)
    assert all(math.isnan(value) for value in last.probabilities.values())
    assert score([], [], []) == []
    with pytest.raises(UserError, match="not as many: {'pictures': 2, 'products': 1, 'captions': 1}"):
        score([picture] * 2, [product], ["a stool"])
    with pytest.raises(UserError, match="pictures must be a list"):
        score(str(picture), [product], ["a stool"])
    with pytest.raises(UserError, match=r"a tensor \[4, 60, 80\]: RGB is \[3,H,W\]"):
        score([tensors[1]], [product], ["a stool"], rfnet=str(world / "rfnet"))
