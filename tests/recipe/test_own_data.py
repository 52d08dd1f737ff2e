"""Products from a module of one's own, and what a run says about what it trains and evaluates on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from rfft import build
from rfft.config.load import load_config
from rfft.data.overlap import overlap_warnings

Rfft = Callable[..., tuple[int, str, str]]
DOCS = Path(__file__).parents[2] / "docs" / "products.md"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """photos/ and prompts.json in the working folder."""
    (tmp_path / "photos").mkdir()
    for i, name in enumerate("abcdefghijkl"):
        pixels = np.zeros((40, 30, 4), np.uint8)
        pixels[10:30, 5:25] = 20 * i, 90, 30, 255
        Image.fromarray(pixels).save(tmp_path / f"photos/{name}.png")
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": "a park"}, {"prompt": "a wall"}]))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rfft(photos: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Rfft) -> Rfft:
    """rfft(*arguments), in a folder with a package that holds the data set of docs/products.md."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").touch()
    code = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    (tmp_path / "shop/boxes.py").write_text(code)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("shop", "shop.boxes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return run_command


def facts_of(out: str) -> dict[str, str]:
    """What `rfft check` prints, by name."""
    facts = (line.partition("  ") for line in out.splitlines())
    return {name: value.strip() for name, _, value in facts}


QUICK = ("evaluate.max_attempts=1", "evaluate.reference=null", "trainer.sample_every=0", "evaluate.count=3")


def test_a_data_set_of_ones_own(rfft: Rfft, world: Path) -> None:
    """It is checked, trained on for two steps but for what is held out, evaluated on, and painted."""
    settings = yaml.safe_load((world / "config.yaml").read_text())
    settings["data"] = {"products": "shop.boxes:Boxes", "options": {"count": 12}, "holdout": 0.5}
    Path("own.yaml").write_text(yaml.safe_dump(settings))
    code, out, told = rfft("check", "own.yaml", *QUICK)
    facts = facts_of(out)
    assert code == 0 and "warning" not in told, told
    assert facts["training"] == "8 products with 8 prompts from shop.boxes:Boxes:train"
    assert facts["evaluation"] == "2 products with 2 prompts from shop.boxes:Boxes:test, 2 seeds"

    code, _, told = rfft("train", "own.yaml", *QUICK)
    assert code == 0, told
    assert "training on 8 products with 8 prompts from shop.boxes:Boxes:train\n" in told
    assert "evaluating on 2 products with 2 prompts from shop.boxes:Boxes:test\n" in told
    assert "warning" not in told
    assert len(json.loads(Path("runs/small/evaluation.json").read_text())["cells"]) == 4

    generate = ("generate", "--products", "shop.boxes:Boxes", "--out", "ads", "--max-attempts", 1)
    code, _, told = rfft(*generate, "--config", "own.yaml", "data.options={count: 2}")
    assert code == 0, told
    assert sorted(path.name for path in Path("ads/images").iterdir()) == ["box-0.png", "box-1.png"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["data.products=shop.boxes:Boxes"],
            "'shop.boxes:Boxes': its options do not fit: missing a required",
        ),
        (["data.products=shop.boxes:Box"], "'shop.boxes:Box' cannot be used: module 'shop.boxes' has no"),
        (
            ["data.products=shop.boxes:Boxes", "data.options={count: 2, size: 32}"],
            "shop.boxes:Boxes: sample 0: its canvas must be a float tensor [4, 64, 64], as data.image_size",
        ),
        (["data.products=photos", "data.prompts=prompts.json", "data.holdout=1.5"], "data.holdout is 1.5"),
        (["data.products=adworld:test"], "adworld:test is both trained on and evaluated on; set data."),
    ],
)
def test_mistakes(rfft: Rfft, world: Path, settings: list[str], told: str) -> None:
    code, _, error = rfft("check", world / "config.yaml", *settings)
    assert code == 2 and len(error.splitlines()) == 1 and told in error, error


@pytest.mark.parametrize(
    ("settings", "evaluated_on", "warning"),
    [
        ([], "photos", "3 of the 3 products evaluated on are trained on: "),
        (["data.holdout=0.5"], "photos:test", None),
        (["data.holdout=copies"], "copies:test", "3 of the 3 products evaluated on are trained on: "),
        (
            ["evaluate.products=adworld:test"],
            "adworld:test",
            "trained on photos but evaluated on adworld:test: ",
        ),
    ],
)
def test_evaluating_on_what_is_trained_on(
    photos: None, world: Path, settings: list[str], evaluated_on: str, warning: str | None
) -> None:
    """One line says so, with the fix; copies under other names are found, too."""
    Path("copies").mkdir()
    for photo in Path("photos").iterdir():
        Path("copies", f"copy of {photo.name}").write_bytes(photo.read_bytes())
    own = ("data.products=photos", "data.prompts=prompts.json", *QUICK)
    config = load_config(world / "config.yaml", [*own, *settings])
    trained, evaluated = (build.build_samples(config, purpose) for purpose in ("train", "evaluate"))
    assert build.evaluated_products(config) == evaluated_on
    assert {sample.prompt for sample in evaluated} == {"a park", "a wall"} or "adworld" in evaluated_on
    sources = build.trained_products(config), evaluated_on
    warnings = list(overlap_warnings(sources[0], trained, sources[1], evaluated))
    assert len(warnings) == (warning is not None)
    assert all(line.startswith(warning or "") and "; set " in line for line in warnings)


@pytest.mark.slow
def test_products_of_several_proportions(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Rfft
) -> None:
    """Checked, trained on, evaluated and painted in buckets; a run that was cut off is the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        shape = (60, 30, 4) if i % 2 else (30, 60, 4)
        pixels = np.zeros(shape, np.uint8)
        pixels[5:-5, 5:-5] = 20 * i, 90, 30, 255
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    Path("prompts.json").write_text(json.dumps([{"prompt": "a park"}]))
    settings = yaml.safe_load((world / "config.yaml").read_text())
    settings["data"] = {"products": "photos", "prompts": "prompts.json", "buckets": "auto"}
    Path("own.yaml").write_text(yaml.safe_dump(settings))
    own = [
        *QUICK,
        "evaluate.products=photos",
        "evaluate.prompts=prompts.json",
        "trainer.sample_every=1",
        "trainer.checkpoint_every=1",
    ]
    code, _, told = run_command("check", "own.yaml", *own)
    assert code == 0, told
    for name, stops in (("whole", [2]), ("cut", [1, 2])):
        for steps in stops:
            code, _, told = run_command(
                "train", "own.yaml", *own, f"run.name={name}", f"trainer.steps={steps}"
            )
            assert code == 0, told
    first, second = (
        load_file(f"runs/{name}/checkpoints/step-000002/adapter.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    width, height = Image.open("runs/whole/samples/base.png").size
    assert (width, height) == (2 * 80, 3 * 80)  # three products, two seeds: room for 80 x 48 and 48 x 80
    exported = Path("runs/whole/export/diffusers")
    code, _, told = run_command(
        "generate",
        "--products",
        "photos",
        "--prompts",
        "prompts.json",
        "--lora",
        exported,
        "--out",
        "out",
        "evaluate.max_attempts=1",
    )
    assert code == 0, told
    sizes = {i: Image.open(f"out/images/{i}.png").size for i in range(8)}
    assert all((width > height) == (i % 2 == 0) for i, (width, height) in sizes.items())
