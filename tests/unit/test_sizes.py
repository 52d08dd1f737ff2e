"""Canvases that are not square, and buckets of them: hand-worked sizes, and the order of batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfft.config.load import config_from
from rfft.data.cutout import paste_back, place_on_canvas
from rfft.data.dataset import read_samples
from rfft.data.order import BucketOrder
from rfft.data.samples import Framing, Selection
from rfft.data.sizes import as_size, auto_buckets, nearest, of_one_size, picture_shape
from rfft.errors import UserError
from rfft.models.families.sdxl import time_ids
from rfft.utils.contact_sheet import in_cells, tile, untile

RED = (200, 30, 40, 255)


def block(height: int, width: int) -> np.ndarray:
    source = np.zeros((height + 20, width + 20, 4), np.uint8)
    source[10:-10, 10:-10] = RED
    return source


def test_a_product_takes_its_share_of_whichever_side_it_reaches_first() -> None:
    canvas, placement = place_on_canvas(block(30, 60), (100, 200), 0.5)
    assert canvas.shape == (4, 100, 200)
    assert placement.canvas == (50, 25, 150, 75)  # 60 x 30 enlarged by 5/3: both shares are reached at once
    canvas, placement = place_on_canvas(block(60, 30), (100, 200), 0.5)
    assert placement.canvas == (87, 25, 112, 75)  # the height's share, 50 of 100


def test_a_picture_that_is_not_square_comes_back_at_the_products_resolution() -> None:
    source = block(200, 100)
    _, placement = place_on_canvas(source, (64, 96), 0.5)  # 32 x 16 on the canvas: 6.25 source pixels each
    picture = paste_back(torch.zeros(3, 64, 96), source, placement, 10**7)
    assert picture.shape == (400, 600, 3)
    assert (picture == RED[:3]).all(axis=2).sum() == 200 * 100


def test_a_size_is_a_side_or_height_and_width() -> None:
    assert as_size(64) == as_size([64, 64]) == 64
    assert as_size([64, 96]) == (64, 96)
    assert torch.equal(
        time_ids((64, 96), torch.zeros(2, 1)), torch.tensor([[64.0, 96, 0, 0, 64, 96]]).repeat(2, 1)
    )


def test_auto_buckets_have_at_most_the_pixels_of_the_square() -> None:
    assert auto_buckets(64) == ((80, 48), 64, (48, 80))  # multiples of 16, 4096 pixels at most
    sizes = auto_buckets(1024)
    assert 1024 in sizes and (832, 1216) in sizes and (1216, 832) in sizes  # as SDXL was trained
    assert all(h * w <= 1024**2 and h % 64 == w % 64 == 0 for h, w in (s for s in sizes if s != 1024))


def test_the_nearest_bucket_is_by_ratio() -> None:
    buckets = (80, 48), 64, (48, 80)
    assert [nearest(buckets, *shape) for shape in ((500, 300), (300, 300), (10, 13), (10, 14))] == [
        0,
        1,
        2,
        2,
    ]
    assert nearest(buckets, 100, 120) == 1


def test_batches_hold_one_bucket_and_an_epoch_holds_all_samples() -> None:
    buckets = np.array([0, 1, 0, 2, 0, 1, 0, 0], np.uint8)
    order = BucketOrder(3, buckets, 2)
    assert order.per_epoch == 5  # three batches of five samples, one of two, one of one
    epoch = [order(2 * i) for i in range(5)]
    assert all(len(set(buckets[batch])) == 1 for batch in epoch)
    seen = Counter(i for batch in epoch for i in batch)
    assert set(seen) == set(range(8)) and sum(seen.values()) == 10
    assert [order(10 + 2 * i) for i in range(5)] != epoch  # shuffled anew
    again = BucketOrder(3, buckets, 2)
    assert [again(2 * i) for i in (7, 1, 4)] == [order(2 * i) for i in (7, 1, 4)]  # seed and position alone


def test_batches_of_one_size_keep_the_order_where_there_is_but_one() -> None:
    assert of_one_size(range(5), lambda _: None, 2) == [[0, 1], [2, 3], [4]]
    assert of_one_size(range(5), lambda i: 8 * (i % 2 + 1), 2) == [[0, 2], [4], [1, 3]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An upright product, a wide one, one whose manifest says that it is wanted upright, and one turned."""
    rows = []
    for name, shape, size in (("a", (60, 30), None), ("b", (30, 60), None), ("c", (30, 60), [300, 200])):
        Image.fromarray(block(*shape)).save(tmp_path / f"{name}.png")
        row = {"id": name, "image": f"{name}.png", "caption": name, "prompt": "a park"}
        rows.append(row if size is None else row | {"size": size})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "m.jsonl"


def test_products_go_to_the_bucket_of_their_proportions(photos: Path) -> None:
    samples = read_samples(str(photos), Selection(Framing(64, 0.7, buckets=auto_buckets(64))))
    assert [sample.canvas.shape[1:] for sample in samples] == [(80, 48), (48, 80), (80, 48)]
    assert [samples.size(i) for i in range(3)] == [(80, 48), (48, 80), (80, 48)]
    same = read_samples(str(photos), Selection(Framing((64, 96), 0.7)))
    assert {tuple(sample.canvas.shape) for sample in same} == {(4, 64, 96)}


def test_a_product_that_cannot_be_used_is_replaced_by_one_of_its_size(photos: Path) -> None:
    selection = Selection(Framing(64, 0.7, buckets=auto_buckets(64)))
    samples = read_samples(str(photos), selection, skipped=[])
    photos.with_name("a.png").write_bytes(b"broken since")
    assert samples[0].id == "c"


def test_a_photo_that_lies_on_its_side_has_the_shape_it_is_shown_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a right angle
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert picture_shape(tmp_path / "a.jpg") == (40, 20)
    (tmp_path / "b.jpg").write_bytes(b"none")
    assert picture_shape(tmp_path / "b.jpg") is None


def test_cells_of_several_shapes_go_on_one_sheet_and_come_back() -> None:
    cells = in_cells([torch.zeros(3, 4, 2, dtype=torch.uint8), torch.ones(3, 2, 4, dtype=torch.uint8)])
    assert cells.shape == (2, 3, 4, 4)
    assert cells[0, 0].tolist() == [[255, 0, 0, 255]] * 4
    wide = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).reshape(5, 3, 2, 4)
    assert torch.equal(untile(tile(wide, 2), 2, 2, 5), wide)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.image_size=[64,100]", "100] is no multiple of 8: 96 is"),
        ("data.image_size=[64]", "must be a whole number of pixels, or [height, width]"),
        ("data.image_size=large", "must be a whole number of pixels, or [height, width]"),
        ("data.image_size=8", "must be at least 16"),
        ("data.image_size=true", "must be a whole number of pixels, or [height, width]"),
        ("data.buckets=[64,96]", "it must be a list of [height, width]"),
        ("data.buckets=many", "must be auto, or a list of [height, width]"),
        ("data.buckets=[]", "must be auto, or a list of [height, width]"),
    ],
)
def test_sizes_that_no_canvas_can_have_are_refused(override: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        config_from({}, [override])
    assert told in str(error.value)
