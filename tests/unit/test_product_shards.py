"""Products in WebDataset shards: what a sample is, read by its place in the archive."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfft.data.dataset import read_samples
from rfft.data.products import read_products
from rfft.data.samples import Framing, Selection
from rfft.errors import UserError

LONG = "a" * 180  # its header takes more than one block of the archive


def picture(value: int) -> bytes:
    pixels = np.zeros((40, 30, 4), np.uint8)
    pixels[10:30, 5:25] = value, 90, 30, 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(archive: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five products in two archives, in another order than that of their names."""
    folder = tmp_path / "shards"
    folder.mkdir()
    row = {"caption": "oak stool", "prompt": "in a park", "negative_prompt": "dim", "image_scale": 0.5}
    write(
        folder / "b.tar",
        {"x/0001.png": picture(1), "x/0001.json": json.dumps(row).encode(), "0002.txt": b"alone"},
    )
    write(
        folder / "a.tar",
        {
            "vase-2.txt": "crème vase\n".encode(),
            "vase-2.png": picture(2),
            "readme.txt": b"no product",
            f"{LONG}.PNG": picture(3),
            "mug.json": b'{"prompt": "a wall"}',
            "mug.png": picture(4),
        },
    )
    return folder


def test_products_of_shards(shards: Path) -> None:
    products = read_products(shards)
    assert [(product.id, product.caption) for product in products] == [
        ("vase-2", "crème vase"),
        (LONG, LONG),
        ("mug", "mug"),
        ("0001", "oak stool"),
    ]
    assert products[3].prompt == "in a park" and products[3].image_scale == 0.5
    assert (products[2].prompt, products[0].prompt) == ("a wall", None)
    for product, value in zip(products, (2, 3, 4, 1), strict=True):
        assert product.image.read_bytes() == picture(value)
    assert [product.id for product in read_products(shards, lambda name: name in ("mug", "0001"))] == [
        "mug",
        "0001",
    ]
    assert [path.name for path in map(Path, [str(product.image) for product in products[:1]])] == [
        "a.tar: vase-2.png"
    ]


def test_they_become_the_samples_of_a_folder(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for product in read_products(shards):
        (folder / f"{product.id}.png").write_bytes(product.image.read_bytes())
    (tmp_path / "prompts.json").write_text('[{"prompt": "a park", "image_scale": 0.5}]')
    selection = Selection(Framing(64, 0.5), str(tmp_path / "prompts.json"))
    found = {sample.id: sample for sample in read_samples(str(shards), selection)}
    for sample in read_samples(str(folder), selection):
        assert torch.equal(found[sample.id].canvas, sample.canvas)
        assert np.array_equal(found[sample.id].source, sample.source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"x", "a.webp": b"x"}, "a.png: a sample with 2 pictures; expected one"),
        ({"a b/ü..png": b"x"}, "no products here"),
        ({".png": b"x"}, "its name must be fit for a file name"),
        ({"a.png": b"x", "a.json": b"[1]"}, "bad.tar: a.png: its .json must be an object"),
        ({"a.png": b"x", "a.json": b'{"captoin": ""}'}, "a.png: unknown key 'captoin'; known are caption"),
        ({"a.png": b"x", "a.json": b'{"prompt": 1}'}, "a.png: prompt is 1; it must be a text"),
        ({"a.png": b"x", "a.json": b"{"}, "bad.tar:1: broken JSON"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "the text beside it is not UTF-8"),
        ({"a.png": b"x", "a.txt": b"x" * 10_001}, "a text of more than 10,000 bytes beside it"),
        ({"a.png": b"x", "b/a.png": b"x"}, "two products are called 'a'"),
        ({"a.jsonl": b"x"}, "no products here"),
    ],
)
def test_what_is_no_shard_of_products(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write(tmp_path / "bad.tar", files)
    with pytest.raises(UserError) as error:
        read_products(tmp_path)
    assert message in str(error.value)


def test_archives_that_cannot_be_read(shards: Path) -> None:
    write(shards / "c.tar", {"a.png": b"x"}, "w:gz")
    with pytest.raises(UserError, match=r"c.tar: not a readable tar archive; it must not be compressed"):
        read_products(shards)
