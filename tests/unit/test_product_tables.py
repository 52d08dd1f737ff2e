"""Products in tables: parquet files and data sets in the hub's form, the same samples as files give."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rfft.data.dataset import read_samples
from rfft.data.products import read_products
from rfft.data.samples import Framing, Sample, Selection
from rfft.errors import UserError

datasets = pytest.importorskip("datasets")
SELECTION = Selection(Framing(64, 0.7))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))


def cutout(number: int) -> Image.Image:
    pixels = np.zeros((40, 30, 4), np.uint8)
    pixels[10:30, 5:25] = 20 * number, 90, 30, 255
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    cutout(number).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "name": f"vase-{i}",
            "caption": f"vase number {i}",
            "prompt": "a park",
            "image": png(i),
            "price": 3.5,
            "size": [96, 64] if i == 2 else None,
        }
        for i in range(count)
    ]


def write(path: Path, found: list[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in found]), path)
    return path


def test_rows_are_products(tmp_path: Path) -> None:
    products = read_products(write(tmp_path / "shop.parquet", rows()))
    assert [(p.id, p.caption, p.prompt, p.size) for p in products] == [
        ("vase-0", "vase number 0", "a park", None),
        ("vase-1", "vase number 1", "a park", None),
        ("vase-2", "vase number 2", "a park", (96, 64)),
    ]
    assert products[1].image.read_bytes() == png(1)


def test_a_table_gives_the_samples_of_the_files_that_it_holds(tmp_path: Path) -> None:
    """Also by the paths of pictures, and of a folder in the form of `datasets`."""
    (tmp_path / "files").mkdir()
    for i in range(3):
        cutout(i).save(tmp_path / f"files/vase-{i}.png")
    by_path = [row | {"image": f"vase-{i}.png"} for i, row in enumerate(rows())]
    write(tmp_path / "files/paths.parquet", by_path)
    write(tmp_path / "bytes/shop.parquet", rows())
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub/data/train-00000-of-00001.parquet", rows())
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    pictures = {"image": [cutout(i) for i in range(3)], "name": [f"vase-{i}" for i in range(3)]}
    (tmp_path / "pictures/data").mkdir(parents=True)
    made = datasets.Dataset.from_dict(pictures, features=features)
    made.to_parquet(tmp_path / "pictures/data/train-00000-of-00001.parquet")

    def canvases(source: str) -> list[Sample]:
        selection = SELECTION
        if "pictures" in source:
            (tmp_path / "prompts.json").write_text('[{"prompt": "a park"}]')
            selection = Selection(Framing(64, 0.7), prompts=str(tmp_path / "prompts.json"))
        return list(read_samples(source, selection))

    first = canvases(str(tmp_path / "bytes"))
    assert [sample.id for sample in first] == ["vase-0", "vase-1", "vase-2"]
    for source in (
        str(tmp_path / "files/paths.parquet"),
        f"hub:{tmp_path / 'hub'}",
        f"hub:{tmp_path / 'pictures'}",
    ):
        found = canvases(source)
        assert [sample.id for sample in found] == [sample.id for sample in first]
        assert all(torch.equal(a.canvas, b.canvas) for a, b in zip(found, first, strict=True)), source
    samples = read_samples(f"hub:{tmp_path / 'hub'}:train", Selection(Framing(64, 0.7), holdout=0.2))
    assert 0 < len(samples) <= 3
    assert samples.dataset.address(0) == samples.dataset.address(0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "../secret.png"}, "leads out of the manifest's folder"),
        ({"image": "/etc/hostname"}, "leads out of the manifest's folder"),
        ({"image": "none.png"}, "does not exist below"),
        ({"name": "a/b"}, "must be fit for a file name"),
        ({"name": "vase-1"}, "two products are called 'vase-1'"),
        ({"size": [0, 64]}, "it must be [height, width] in pixels"),
        ({"image_scale": 3.0}, "image_scale"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    shown = rows(2)
    if isinstance(change.get("image"), str):
        (tmp_path / "shop").mkdir()
        cutout(1).save(tmp_path / "shop/vase-1.png")
        cutout(1).save(tmp_path / "secret.png")
        shown[1] |= {"image": "vase-1.png"}
    shown[0] |= change
    file = write(tmp_path / "shop/shop.parquet", shown)
    with pytest.raises(UserError) as error:
        list(read_samples(str(file), SELECTION))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 or not")
    write(tmp_path / "bare.parquet", [{"name": "a"}])
    for name, told in (("broken", "cannot be read as a table"), ("bare", "has no column image")):
        with pytest.raises(UserError, match=told) as error:
            read_products(tmp_path / f"{name}.parquet")
        assert "\n" not in str(error.value)
