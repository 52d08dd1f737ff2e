"""Labelled pictures for RFNet: square items, known and made maps, order, mirror, split."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rfft.errors import UserError
from rfft.feedback.dataset import FeedbackDataset, mirrored, split_by_caption, square
from rfft.feedback.folder import Record, read_feedback
from rfft.feedback.maps import MapStore, write_maps
from rfft.rewards.maps import MapNet, MapNetConfig
from rfft.rfnet.data import Positions, Shuffled, batches, build_maps, fill_maps, split_records
from rfft.rfnet.schema import MapsConfig as MapSettings
from rfft.rfnet.schema import RFNetDataConfig

CODES = (1, 3, 4, 5, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of two sizes, left half dark; only the first has a depth map."""
    for kind in ("images", "products", "depth"):
        (tmp_path / kind).mkdir()
    lines = []
    for i in range(10):
        height, width = (24, 16) if i % 2 else (16, 16)
        image = np.full((height, width, 3), 20 * i, np.uint8)
        image[:, : width // 2] = 0
        product = np.zeros((height, width, 4), np.uint8)
        product[4:8, 4:8] = 255
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), image)
        cv2.imwrite(str(tmp_path / f"products/{i}.png"), product)
        lines.append(f"{i}.png\t{CODES[i % 5]}\tcaption {i // 2}\n")
    cv2.imwrite(str(tmp_path / "depth/0.png"), np.full((16, 16), 77, np.uint8))
    (tmp_path / "label.txt").write_text("".join(lines))
    return tmp_path


def constant(value: float):
    return lambda image: torch.full_like(image[:, :1], value)


def test_items_are_square_bytes_with_blank_maps_where_none_are_wanted(folder: Path) -> None:
    items = FeedbackDataset(read_feedback(folder), 16, {})
    item = items[1]
    assert {name: tuple(item[name].shape) for name in ("image", "product", "depth", "saliency")} == {
        "image": (3, 16, 16),
        "product": (4, 16, 16),
        "depth": (1, 16, 16),
        "saliency": (1, 16, 16),
    }
    assert all(item[name].dtype == torch.uint8 for name in ("image", "product", "depth"))
    assert item["image"][0, 5].tolist() == [0] * 8 + [20] * 8
    assert item["depth"].sum() == 0
    assert (item["caption"], item["label"]) == ("caption 0", 1)
    assert items.labels == [0, 1, 2, 3, 4] * 2
    assert FeedbackDataset(items.records, 16, {}, coarse=True).labels == [0, 1, 1, 1, 1] * 2


def test_no_hidden_colour_bleeds_into_a_resized_product() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255  # red where it is transparent
    rgba[:2] = (0, 200, 0, 255)
    small = square(rgba, 2)
    assert small[:, 0].T.tolist() == [[0, 200, 0, 255]] * 2
    assert small[3, 1].tolist() == [0, 0]


def test_known_maps_are_used_and_missing_ones_made_once(folder: Path, tmp_path: Path) -> None:
    records = read_feedback(folder)
    maps = MapStore("depth", "abc")
    missing = maps.missing(records)
    assert [record.name for record in missing] == [f"{i}.png" for i in range(1, 10)]
    write_maps(maps, missing, constant(0.4), "cpu")
    assert maps.missing(records) == []
    items = FeedbackDataset(records, 16, {"depth": maps})
    assert [int(items[i]["depth"].max()) for i in (0, 1, 2)] == [77, 102, 102]
    assert cv2.imread(str(folder / "made-depth-abc/1.png"), cv2.IMREAD_GRAYSCALE).shape == (24, 16)
    assert len(MapStore("depth", "other").missing(records)) == 9  # another network's maps are others
    assert len(MapStore("depth", "abc", known=False).missing(records)) == 1


def test_made_maps_can_live_elsewhere(folder: Path, tmp_path: Path) -> None:
    records = read_feedback(folder)[:1]
    maps = MapStore("depth", "abc", cache=str(tmp_path / "cache"), known=False)
    write_maps(maps, records, constant(1.0), "cpu")
    assert not list(folder.glob("made-*"))
    assert maps.load(records[0], records[0].load()).max() == 255


def test_maps_of_a_network_folder(folder: Path) -> None:
    MapNet(MapNetConfig(widths=[4, 8])).save_pretrained(folder / "net")
    settings = MapSettings(depth=str(folder / "net"), saliency=str(folder / "net"))
    maps = build_maps(settings, drop=["s"])
    assert list(maps) == ["depth"]
    records = read_feedback(folder)
    fill_maps(maps, records, settings, torch.device("cpu"), slice(1, None, 2))
    assert [record.name for record in maps["depth"].missing(records)] == [f"{i}.png" for i in (2, 4, 6, 8)]


def test_mirror_flips_the_pictures_together(folder: Path) -> None:
    item = FeedbackDataset(read_feedback(folder), 16, {})[2]
    flipped = mirrored(item)
    assert flipped["image"][0, 5].tolist() == [40] * 8 + [0] * 8
    assert torch.equal(flipped["product"], item["product"].flip(-1))
    assert flipped["label"] == item["label"]


def test_every_epoch_has_every_picture_once_in_another_order(folder: Path) -> None:
    items = Shuffled(FeedbackDataset(read_feedback(folder), 16, {}), seed=1, mirror=True)
    seen = [items[place] for place in range(20)]
    names = [int(item["image"].max()) for item in seen]
    assert Counter(names[:10]) == Counter(names[10:]) == Counter(20 * i for i in range(10))
    assert names[:10] != names[10:]
    flips = [item["image"][0, 5, 0] > 0 for item in seen if item["image"].max() > 0]
    assert 3 < sum(flips) < 15
    assert torch.equal(items[7]["image"], seen[7]["image"])


def test_processes_share_the_same_order() -> None:
    both = [list(islice(iter(Positions(3, 2, process, 2)), 2)) for process in (0, 1)]
    assert both == [[[12, 13], [16, 17]], [[14, 15], [18, 19]]]
    assert list(islice(iter(Positions(6, 2)), 4)) == [[12, 13], [14, 15], [16, 17], [18, 19]]


def test_a_split_keeps_a_caption_on_one_side() -> None:
    records = [Record(Path(), f"{i}.png", 0, f"caption {i // 10}") for i in range(2000)]
    training, validation = split_by_caption(records, 0.25)
    assert len(training) + len(validation) == 2000 and 300 < len(validation) < 700
    assert not {r.caption for r in training} & {r.caption for r in validation}
    assert split_by_caption(records[::-1], 0.25)[1] == validation[::-1]  # whatever the order


def test_a_split_without_a_side_is_refused(folder: Path) -> None:
    (folder / "label.txt").write_text("0.png\t1\tone caption\n")
    with pytest.raises(UserError, match=r"name folders with data\.validation"):
        split_records(RFNetDataConfig(train=[str(folder)]))


def test_a_broken_picture_is_one_line_also_from_a_worker(folder: Path) -> None:
    (folder / "images/3.png").write_bytes(b"nothing")
    items = FeedbackDataset(read_feedback(folder), 16, {})
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^[^\n]*images/3\.png: not a readable picture \(JPEG[^\n]*\)$"):
            list(batches(DataLoader(items, 4, num_workers=workers)))
