"""Products from a module of one's own, and what a run says about what it trains and evaluates on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Rfft = Callable[..., tuple[int, str, str]]
OWN = '''
import torch
from rfft.data.samples import Sample


class Boxes:
    """Boxes of one colour each, the same whenever they are asked for."""

    def __init__(self, count: int, size: int = 64) -> None:
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        canvas = torch.zeros(4, self.size, self.size)
        canvas[:3, 16:48, 16:48] = index / self.count
        canvas[3, 16:48, 16:48] = 1
        return Sample(f"box-{index}", canvas, "a box, about 20 cm tall", f"a box in park {index}")
'''


@pytest.fixture
def rfft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Rfft) -> Rfft:
    """rfft(*arguments) in a folder that holds a package with a data set, and photos/ with prompts.json."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").touch()
    (tmp_path / "shop/boxes.py").write_text(OWN)
    (tmp_path / "photos").mkdir()
    for i, name in enumerate("abcdefghijkl"):
        pixels = np.zeros((40, 30, 4), np.uint8)
        pixels[10:30, 5:25] = 20 * i, 90, 30, 255
        Image.fromarray(pixels).save(tmp_path / f"photos/{name}.png")
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": "a park"}, {"prompt": "a wall"}]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("shop", "shop.boxes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return run_command


QUICK = ("evaluate.max_attempts=1", "evaluate.reference=null", "trainer.sample_every=0", "evaluate.count=3")


def test_a_data_set_of_ones_own(rfft: Rfft, world: Path) -> None:
    """It is checked, trained on for two steps but for what is held out, evaluated on, and painted."""
    own = ("data.products=shop.boxes:Boxes", "data.options={count: 12}", "data.holdout=0.5", *QUICK)
    code, out, told = rfft("check", world / "config.yaml", *own)
    facts = {line[:36].rstrip(): line[36:] for line in out.splitlines()}
    assert code == 0 and "warning" not in told, told
    assert facts["training"] == "8 products with 8 prompts from shop.boxes:Boxes:train"
    assert facts["evaluation"] == "2 products with 2 prompts from shop.boxes:Boxes:test, 2 seeds"

    code, _, told = rfft("train", world / "config.yaml", *own)
    assert code == 0, told
    assert "training on 8 products with 8 prompts from shop.boxes:Boxes:train\n" in told
    assert "evaluating on 2 products with 2 prompts from shop.boxes:Boxes:test\n" in told
    assert "warning" not in told
    assert len(json.loads(Path("runs/small/evaluation.json").read_text())["cells"]) == 4

    generate = (
        "generate",
        "--products",
        "shop.boxes:Boxes",
        "--config",
        world / "config.yaml",
        "--out",
        "ads",
    )
    code, _, told = rfft(*generate, "--max-attempts", 1, "data.options={count: 2}", "data.holdout=0.7")
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
        (["evaluate.products=adworld:train"], "adworld:train is both trained on and evaluated on; set data."),
    ],
)
def test_mistakes(rfft: Rfft, world: Path, settings: list[str], told: str) -> None:
    code, _, error = rfft("check", world / "config.yaml", *settings)
    assert code == 2 and len(error.splitlines()) == 1 and told in error, error


@pytest.mark.parametrize(
    ("settings", "evaluated", "warning"),
    [
        ([], "3 products with 6 prompts from photos", "3 of the 3 products evaluated on are trained on: "),
        (["data.holdout=0.5"], "3 products with 6 prompts from photos:test", None),
        (["data.holdout=copies"], "3 products with 6 prompts from copies:test", "3 of the 3 products "),
        (
            ["evaluate.products=adworld:test"],
            "3 products with 6 prompts from adworld:test",
            "trained on photos but evaluated on adworld:test: ",
        ),
    ],
)
def test_evaluating_on_what_is_trained_on(
    rfft: Rfft, world: Path, settings: list[str], evaluated: str, warning: str | None
) -> None:
    """Said in one line, with the fix; copies under other names are found, too."""
    Path("copies").mkdir()
    for photo in Path("photos").iterdir():
        Path("copies", f"copy of {photo.name}").write_bytes(photo.read_bytes())
    own = ("data.products=photos", "data.prompts=prompts.json", *QUICK)
    code, out, told = rfft("check", world / "config.yaml", *own, *settings)
    assert code == 0 and f"evaluation                          {evaluated}, 2 seeds" in out, told
    warnings = [line for line in told.splitlines() if "warning" in line]
    if warning is None:
        assert not warnings
    else:
        assert len(warnings) == 1 and warnings[0].startswith(f"warning: {warning}") and "set " in warnings[0]
