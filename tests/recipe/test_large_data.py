"""Data that does not live in memory: what comes out does not depend on where it is kept or how it is read."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfft.data import dataset
from rfft.data.conditions import product_for
from rfft.data.products import read_products
from rfft.evaluation import sheets
from rfft.evaluation.picture_file import PictureFile
from rfft.evaluation.sheets import Sheets, save_sheets
from rfft.generation import job
from tests.photos import write_photos
from tests.recipe.test_train import PLAIN, Rfft, rfft, rows, weights  # noqa: F401  fixtures

COUNT = 6


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Six products and prompts, as settings."""
    folder = tmp_path / "photos"
    write_photos(folder, COUNT)
    (tmp_path / "prompts.json").write_text('[{"prompt": "a park"}, {"prompt": "a wall"}]')
    return [f"data.products={folder}", f"data.prompts={tmp_path}/prompts.json"]


def test_no_cache_an_empty_one_and_a_full_one(rfft: Rfft, photos: list[str], tmp_path: Path) -> None:  # noqa: F811
    """Nor do threads that read ahead change a bit."""
    cache = f"data.cache={tmp_path}/cache"
    for name, kept in {
        "none": ["data.cache=null", "data.workers=0"],
        "empty": [cache, "data.workers=2"],
        "full": [cache, "data.workers=1"],
    }.items():
        code, told = rfft(*PLAIN, *photos, *kept, f"run.name={name}", "trainer.steps=2")
        assert code == 0, told
    assert (tmp_path / "cache/data.mdb").stat().st_size > 0
    for name in ("empty", "full"):
        assert rows(name) == rows("none")
        assert all(torch.equal(tensor, weights("none", 2)[key]) for key, tensor in weights(name, 2).items())


def test_a_product_that_breaks_on_the_way(
    rfft: Rfft,  # noqa: F811
    photos: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stops the run when it is needed, with the steps until then saved; or another one takes its place."""
    assert rfft(*PLAIN, *photos, "run.name=whole", "trainer.steps=2")[0] == 0
    monkeypatch.setattr(dataset, "LOOK", 1)
    number = next(i for i in (product_for(0, position, COUNT) for position in range(2, 4)) if i > 0)
    broken = tmp_path / f"photos/{number}.png"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    code, told = rfft(*PLAIN, *photos, "trainer.steps=2")
    assert code == 2 and f"{number}.png: not a readable image" in told
    (saved,) = Path("runs/small/checkpoints").iterdir()
    code, told = rfft(*PLAIN, *photos, "data.on_error=skip", "run.name=skipping", "trainer.steps=2")
    assert code == 0 and told.count("a product is left out, listed in skipped.jsonl") == 1
    (listed,) = Path("runs/skipping/skipped.jsonl").read_text().splitlines()
    assert json.loads(listed)["id"] == f"{number}"
    broken.write_bytes(content)
    code, told = rfft(*PLAIN, *photos, "trainer.steps=2")
    assert code == 0 and f"goes on after step {int(saved.name[-6:])} of 2" in told
    assert rows("small") == rows("whole")


# ---- rfft generate ----


Command = Callable[..., tuple[int, str, str]]


def test_a_generation_goes_on_where_it_was_cut_off(
    run_command: Command, world: Path, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted pictures and refused attempts are not painted again."""
    prompts = ["--prompts", tmp_path / "prompts.json", "--max-attempts", 2, "evaluate.batch_size=1"]
    command = ["generate", "--config", world / "config.yaml", "--products", tmp_path / "photos", *prompts]
    painted: list[tuple[str, bool]] = []
    keep, cut_at = job.keep_picture, 4

    def watched(folder: Path, sample: Any, image: torch.Tensor, first: bool, limit: int) -> None:
        if len(painted) == cut_at:
            raise OSError("the machine goes down")
        painted.append((sample.id, first))
        keep(folder, sample, image, first, limit)

    monkeypatch.setattr(job, "keep_picture", watched)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.raises(OSError, match="goes down"):
        run_command(*command, "--out", cut)
    done = [json.loads(line)["id"] for line in (cut / "manifest.jsonl").read_text().splitlines()]
    refused = {json.loads(line)["id"] for line in (cut / ".refused.jsonl").read_text().splitlines()}
    assert len(set(done) | refused) == 4 and len(list((cut / "images").iterdir())) == 4
    with (cut / "manifest.jsonl").open("a") as file:
        file.write('{"id": "5", "ima')  # what a kill leaves

    code, _, told = run_command(*command, "--out", cut, "--seed", 7)
    assert code == 2 and f"rfft: {cut} was begun with run.seed=0, not 7: name a new folder" in told
    cut_at = 1000
    before = len(painted)
    code, _, told = run_command(*command, "--out", cut)
    assert code == 0, told
    assert not {name for name, _ in painted[before:]} & set(done)
    assert {name for name, first in painted[before:] if first} == set("012345") - set(done) - refused
    assert run_command(*command, "--out", whole)[0] == 0
    for name in ("manifest.jsonl", "contact_sheet.png", "generation.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    names = sorted(path.relative_to(whole) for path in whole.rglob("*.png"))
    assert [(cut / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]
    assert not (cut / ".refused.jsonl").exists()
    code, _, told = run_command(*command, "--out", cut)
    assert code == 2 and "exists already" in told


# ---- listings and pictures ----


def test_a_manifest_takes_little_memory(tmp_path: Path) -> None:
    """Some fifty bytes a product, of a line of 150; its rows are read again when they are needed."""
    (tmp_path / "a.png").touch()
    count, caption = 10_000, "a stool of oak, about 45 cm tall, with a seat of straw"
    with (tmp_path / "m.jsonl").open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {"id": f"é{i}", "image": "a.png", "caption": f"{caption} {i}", "prompt": "in a park"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n" * (1 + i % 2))
    read_products(tmp_path / "m.jsonl")
    tracemalloc.start()
    products = read_products(tmp_path / "m.jsonl")
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(products) == count and kept < 60 * count and most < 200 * count
    assert [(products[i].id, products[i].caption[-4:]) for i in (0, 777, -1)] == [
        ("é0", "aw 0"),
        ("é777", " 777"),
        ("é9999", "9999"),
    ]
    assert [product.id for product in products[5:8]] == ["é5", "é6", "é7"]
    assert list(products[5:8].images()) == [tmp_path / "a.png"] * 3


def test_many_pictures_lie_in_several_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SHEET", 3 * 2 * 64)  # three rows of two
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    for count, names in ((16, ["base-2.png", "base-3.png", "base.png"]), (4, ["base.png"])):
        pictures = PictureFile(count, tmp_path)
        for i in reversed(range(count)):
            pictures.write(i, images[i])
        assert torch.equal(pictures.all(), images[:count]) and torch.equal(
            pictures.read(2, 99), images[2:count]
        )
        save_sheets(tmp_path, "base", pictures, columns=2)
        assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
        found = Sheets(tmp_path, "base", 2, count)
        assert all(torch.equal(found[i], images[i]) for i in (*range(count), 0))
        assert torch.equal(found.first(99), images[:count]) and len(found) == count
        with pytest.raises(IndexError):
            found[count]
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    with pytest.raises(FileNotFoundError):
        Sheets(tmp_path, "tuned", 2, 4)
