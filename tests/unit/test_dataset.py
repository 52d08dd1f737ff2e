"""Data sets by source: folder, manifest, AdWorld, one's own; their splits; what one's own may get wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfft.data.dataset import evaluation_source, open_dataset, read_samples
from rfft.data.samples import Framing, Sample, Selection, Skipped
from rfft.data.splits import Split
from rfft.errors import UserError

PLAIN = Selection(Framing(64, 0.75))


def save_product(path: Path) -> None:
    pixels = np.zeros((40, 30, 4), np.uint8)
    pixels[10:30, 5:25] = 200, 90, 30, 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Three products."""
    (tmp_path / "photos").mkdir()
    for name in ("box", "cup", "jar"):
        save_product(tmp_path / "photos" / f"{name}.png")
    return str(tmp_path / "photos")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    one = {"prompt": "one {}", "flag": 1}
    two = {"prompt": "two", "negative_prompt": "no", "image_scale": 0.5}
    (tmp_path / "prompts.json").write_text(json.dumps([one, two, {"prompt": "three"}]))
    return str(tmp_path / "prompts.json")


class Toy:
    """A data set of one's own; `change` spoils its second sample."""

    def __init__(self, count: int = 3, change: dict[str, Any] | None = None) -> None:
        self.count, self.change = count, change or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        canvas = torch.zeros(4, 64, 64)
        canvas[:, 16:48, 16:48] = (index + 1) / 100
        canvas[3, 16:48, 16:48] = 1
        sample = Sample(f"toy-{index}", canvas, "a toy", f"prompt {index}")
        return replace(sample, **self.change) if index == 1 else sample


OWN = f"{Toy.__module__}:Toy"


def test_prompts_are_dealt_out_in_turn(photos: str, prompts: str) -> None:
    selection = replace(PLAIN, prompts=prompts, prompts_per_product=2)
    made = read_samples(photos, selection)
    assert [s.id for s in made] == ["box-0", "box-1", "cup-0", "cup-1", "jar-0", "jar-1"]
    assert [s.product for s in made] == ["box", "box", "cup", "cup", "jar", "jar"]
    assert [s.prompt.split()[0] for s in made] == ["one", "two", "three", "one", "two", "three"]
    assert "{" not in made[0].prompt and made[1].negative == "no"
    widths = [int((s.canvas[3].amax(0) > 0).sum()) for s in made]
    assert widths[:2] == [48, 32]
    assert len(read_samples(photos, replace(selection, count=2))) == 4


def test_samples_do_not_depend_on_the_order_in_which_they_are_read(photos: str, prompts: str) -> None:
    selection = replace(PLAIN, prompts=prompts, prompts_per_product=2, count=3)
    for source in (photos, "adworld:test", OWN):
        forth, back = open_dataset(source, selection), open_dataset(source, selection)
        order = range(len(forth))
        made = {i: back[i] for i in reversed(order)}
        for i in order:
            assert (forth[i].id, forth[i].prompt) == (made[i].id, made[i].prompt)
            assert torch.equal(forth[i].canvas, made[i].canvas)


def test_a_product_without_a_prompt(photos: str) -> None:
    with pytest.raises(UserError, match="product 'box' has no prompt; .*data.prompts"):
        read_samples(photos, PLAIN)


def test_a_product_that_cannot_be_used(photos: str, prompts: str) -> None:
    Path(photos, "cup.png").write_text("no picture")
    selection = replace(PLAIN, prompts=prompts, prompts_per_product=2)
    with pytest.raises(UserError, match="cup.png: not a readable image"):
        read_samples(photos, selection)
    skipped: list[Skipped] = []
    made = read_samples(photos, selection, skipped)
    assert [s.product for s in made] == ["box", "box", "jar", "jar"]
    assert [(s.id, s.reason) for s in skipped] == [("cup", f"{photos}/cup.png: not a readable image")]


def test_adworld() -> None:
    made = read_samples("adworld:test", replace(PLAIN, count=3, prompts_per_product=2, seed=1))
    assert len(made) == 6 == len({s.id for s in made}) and len({s.product for s in made}) == 3
    assert made[0].attributes and torch.equal(made[0].canvas, made[1].canvas)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("adworld:tset", {}, "adworld:tset: no such split; give adworld:train"),
        ("adworld", {}, "adworld: no such split"),
        ("adworld:test", {"framing": Framing(128, 0.7)}, "set data.image_size=64"),
        ("adworld:train", {"holdout": 0.2}, "AdWorld has splits of its own; set data.holdout=null"),
        ("nowhere", {}, "nowhere: no such folder or manifest of products"),
        ("no.such:Thing", {}, "data.products 'no.such:Thing' cannot be used: No module named 'no'"),
        (OWN, {"options": {"colour": 1}}, "its options do not fit"),
        (OWN, {"options": {"count": 0}}, "there are none"),
        (f"{OWN}:val", {}, "no products are held out; set data.holdout"),
        (f"{OWN}:val", {"holdout": 1e-9}, "Toy:val: none of the 3 products falls into this split"),
        ("pathlib:Path", {}, "'pathlib:Path' is no map-style data set: it has no __len__"),
    ],
)
def test_sources_that_cannot_be_used(source: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_samples(source, replace(PLAIN, **change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "../x"}, "sample 1: its id '../x' is not fit for a file name"),
        ({"id": "toy-0"}, "two samples are called 'toy-0'"),
        ({"caption": None}, "sample 1: its caption must be a text"),
        ({"canvas": torch.ones(4, 32, 32)}, "float tensor [4, 64, 64], as data.image_size says"),
        ({"canvas": torch.full((4, 64, 64), 255, dtype=torch.uint8)}, "must be a float tensor"),
        ({"canvas": torch.full((4, 64, 64), 255.0)}, "values that are not within [0, 1]"),
        ({"canvas": torch.full((4, 64, 64), float("nan"))}, "values that are not within [0, 1]"),
        ({"canvas": torch.zeros(4, 64, 64)}, "its canvas is transparent"),
    ],
)
def test_mistakes_of_a_data_set_of_ones_own(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_samples(OWN, replace(PLAIN, options={"change": change}))
    assert message in str(error.value)


def test_splits_share_nothing_and_stay_when_products_are_added() -> None:
    products = [f"sku-{i:04}" for i in range(2000)]
    splits = {name: Split(name, 0.2) for name in ("train", "val", "test")}
    found = {name: {p for p in products if split.has(p)} for name, split in splits.items()}
    assert sum(len(part) for part in found.values()) == 2000 == len(set.union(*found.values()))
    assert 160 < len(found["val"]) < 240 and 160 < len(found["test"]) < 240
    assert splits["test"].has("cafe\u0301") == splits["test"].has("caf\u00e9")


PHOTOS, OTHERS = "abcdefghijklmnop", "qrstuvwxyz"


def test_a_share_or_a_folder_is_held_out(tmp_path: Path, prompts: str) -> None:
    for folder, names in (("photos", PHOTOS), ("others", OTHERS)):
        (tmp_path / folder).mkdir()
        for name in names:
            save_product(tmp_path / folder / f"{name}.png")
    photos, others = str(tmp_path / "photos"), str(tmp_path / "others")

    def ids(source: str, holdout: float | str) -> set[str]:
        return {s.product for s in read_samples(source, replace(PLAIN, prompts=prompts, holdout=holdout))}

    parts = [ids(f"{photos}:{split}", 0.6) for split in ("train", "val", "test")]
    assert sorted("".join(map("".join, parts))) == list(PHOTOS) and all(parts)
    assert ids(photos, 0.6) == set(PHOTOS)  # all of them, for rfft generate
    assert ids(f"{photos}:train", others) == set(PHOTOS)
    parts = [ids(f"{photos}:{split}", others) for split in ("val", "test")]
    assert sorted("".join(map("".join, parts))) == list(OTHERS) and all(parts)


def test_what_is_evaluated_on_unless_it_is_named() -> None:
    assert evaluation_source("adworld:train", None) == "adworld:test"
    assert evaluation_source("photos", 0.2) == evaluation_source("photos:train", 0.2) == "photos:test"
    assert evaluation_source("package.module:Name", 0.2, "val") == "package.module:Name:val"
    assert evaluation_source("photos", "others") == "others:test"
    assert evaluation_source("photos", None) == "photos"
