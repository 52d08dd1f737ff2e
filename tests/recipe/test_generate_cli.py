"""`rfft generate` on product photos as people have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from rfft import build
from rfft.config.load import load_config, to_yaml
from rfft.evaluation.runs import export_run
from rfft.generation import generated, recurrent
from rfft.generation.export import export_bundle
from rfft.models.bundle import Bundle
from rfft.types import LABELS
from rfft.utils.checkpoint import Checkpoints
from tests.toys import no_memory

SIZES = {"square": (800, 800), "wide": (600, 200), "tall": (120, 400), "small": (30, 40)}
Rfft = Callable[..., tuple[int, list[str]]]


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """A noisy disc with a soft edge; what is transparent has a colour, too, that must not show."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse([2, 2, size[0] - 3, size[1] - 3], fill=255)
    pixels[..., 3] = np.asarray(mask)
    pixels[0, 0, 3] = 100
    return Image.fromarray(pixels)


@pytest.fixture
def products(tmp_path: Path) -> Path:
    folder = tmp_path / "products"
    folder.mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        photo(size, seed).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("oak bookcase, about 180 cm tall")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """In the official form, with a colour to be filled in."""
    rows = [
        {"prompt": "a park", "negative_prompt": "ugly", "image_scale": 0.6, "matting": 0, "flag": 0},
        {"prompt": "a {} wall", "negative_prompt": "", "image_scale": 0.5, "matting": 1, "flag": 1},
    ]
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(rows))
    return file


def manifest(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def command(world: Path, products: object, out: Path, *rest: object) -> list[object]:
    return ["generate", "--config", world / "config.yaml", "--products", products, "--out", out, *rest]


def test_photos_of_any_shape(rfft: Rfft, world: Path, products: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    code, lines = rfft(*command(world, products, out, "--prompts", prompts, "--max-attempts", 3, "--seed", 5))
    assert code == 0 and any("RFNet accepts" in line and "of 4 pictures" in line for line in lines)

    rows = manifest(out)
    share = sum(bool(row["accepted"]) for row in rows) / len(rows)
    assert any(f" accepted {share:.0%} " in line for line in lines)  # as the progress bar ends
    assert [row["id"] for row in rows] == sorted(SIZES)
    for row in rows:
        probabilities = row["probabilities"]
        assert isinstance(probabilities, dict) and tuple(probabilities) == LABELS
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)
        assert row["accepted"] == (max(probabilities, key=probabilities.get) == "available")
        assert 1 <= row["attempts"] <= 3 and 5 <= row["seed"] < 5 + row["attempts"]
        assert row["accepted"] or row["attempts"] == 3
    assert rows[0]["negative_prompt"] == "ugly"
    assert rows[1]["prompt"].startswith("a ") and "{}" not in rows[1]["prompt"]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 128
    assert not list(tmp_path.rglob("*.part"))


def test_the_products_own_pixels_are_kept(rfft: Rfft, world: Path, products: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('[{"prompt": "a park", "image_scale": 0.6}]')
    out = tmp_path / "pictures"
    assert rfft(*command(world, products, out, "--prompts", prompts, "--max-attempts", 1))[0] == 0
    for name in ("square", "wide", "tall"):
        source = np.asarray(Image.open(products / f"{name}.png"))
        picture = np.asarray(Image.open(out / f"images/{name}.png"))
        rows, columns = (np.flatnonzero((source[..., 3] > 127).any(axis=axis)) for axis in (1, 0))
        cutout = source[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = cutout.shape[:2]
        assert picture.shape[0] == picture.shape[1] >= max(height, width) / 0.62
        patch = cutout[height // 2 - 20 :, width // 2 - 20 :][:40, :40, :3]
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(picture, patch, cv2.TM_SQDIFF))
        top, left = y - height // 2 + 20, x - width // 2 + 20
        opaque = cutout[..., 3] == 255
        found = picture[top : top + height, left : left + width]
        assert np.array_equal(found[opaque], cutout[..., :3][opaque]), name
        canvas_pixel = picture.shape[0] / 64
        centre = np.array([top + height / 2, left + width / 2])
        assert np.abs(centre - picture.shape[0] / 2).max() <= canvas_pixel, name


def test_a_product_is_painted_alike_in_any_company(
    rfft: Rfft, world: Path, products: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('[{"prompt": "a park"}]')
    arguments = ("--prompts", prompts, "--max-attempts", 2)
    assert rfft(*command(world, products, tmp_path / "all", *arguments))[0] == 0
    for name in ("square", "small", "wide"):
        (products / f"{name}.png").unlink()
    assert rfft(*command(world, products, tmp_path / "one", *arguments))[0] == 0
    alone, together = (
        {str(row["id"]): row for row in manifest(tmp_path / part)}["tall"] for part in ("one", "all")
    )
    assert (alone["seed"], alone["attempts"]) == (together["seed"], together["attempts"])
    one, two = (
        np.asarray(Image.open(tmp_path / part / "images/tall.png")).astype(int) for part in ("one", "all")
    )
    assert np.abs(one - two).max() <= 1


def test_adworlds_products(rfft: Rfft, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    assert rfft(*command(world, "adworld:test", out, "--max-attempts", 1, "data.count=3"))[0] == 0
    with Image.open(out / str(manifest(out)[0]["image"])) as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_an_exported_lora(
    rfft: Rfft,
    world: Path,
    tmp_path: Path,
    make_trained: Callable[..., Bundle],
    format: str,
) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    export_bundle(make_trained("denoiser_lora", "controlnet"), format, lora, "tiny")
    arguments = ("--max-attempts", 1, "data.count=1")
    assert rfft(*command(world, "adworld:test", tmp_path / "base", *arguments))[0] == 0
    assert rfft(*command(world, "adworld:test", tmp_path / "tuned", *arguments, "--lora", lora))[0] == 0
    base, tuned = (
        np.asarray(Image.open(next(tmp_path.glob(f"{name}/images/*.png")))) for name in ("base", "tuned")
    )
    assert base.shape == tuned.shape and not np.array_equal(base, tuned)


def test_exported_weights_bring_their_settings(
    rfft: Rfft, run_with_lora: Path, world: Path, tmp_path: Path
) -> None:
    """Size, guidance and RFNet are those of the run; weights without them need a --config."""
    out, lora = tmp_path / "pictures", run_with_lora / "export/diffusers"
    arguments = ("--products", "adworld:test", "--max-attempts", 1, "data.count=1")
    assert rfft("generate", "--lora", lora, "--out", out, *arguments)[0] == 0
    alone = tmp_path / "with_config"
    assert rfft(*command(world, "adworld:test", alone, *arguments[2:], "--lora", lora))[0] == 0
    (carried,), (configured,) = manifest(out), manifest(alone)
    assert carried == configured  # RFNet of the run's world, not the embedded one, and 4 steps
    settings = yaml.safe_load((lora / "rfft.yaml").read_text())
    assert settings["rollout"]["guidance_scale"] == 3.0
    assert not {"run", "tracker"} & settings.keys() and "products" not in settings["data"]
    (lora / "rfft.yaml").unlink()
    for option, weights in (("--lora", lora), ("--model", lora)):
        code, lines = rfft("generate", option, weights, "--out", tmp_path / "more", *arguments)
        assert code == 2 and lines[-1].startswith(f"rfft: {option} {weights}: ") and "--config" in lines[-1]


@pytest.fixture
def run_with_lora(world: Path, tmp_path: Path) -> Path:
    """A run of two steps' settings with a checkpoint, exported."""
    config = load_config(world / "config.yaml")
    bundle = build.build_bundle(config, "cpu")
    folder = tmp_path / "runs/small"
    Checkpoints(folder / "checkpoints", keep=1).save(2, {"adapter": bundle.adapter_state_dict()}, {})
    (folder / "config.yaml").write_text(to_yaml(config))
    export_run(folder, "diffusers", folder / "export/diffusers")
    return folder


def test_what_is_not_finite_is_never_accepted(
    rfft: Rfft, world: Path, tmp_path: Path, make_trained: Callable[..., Bundle]
) -> None:
    out, arguments = tmp_path / "pictures", ("--max-attempts", 3)
    for count in (1, 2):
        settings = (f"data.count={count}", "rollout.guidance_scale=1e30")
        code, lines = rfft(*command(world, "adworld:test", out, *arguments, *settings))
        assert code == 2 and lines[-1].startswith(f"rfft: none of {count} pictures is finite"), lines
        assert "or lower rollout.guidance_scale=1e+30" in lines[-1] and not out.exists()
    lora, bundle = tmp_path / "lora", make_trained("denoiser_lora")
    lora.mkdir()
    next(iter(bundle.trainable().values())).data.fill_(float("nan"))
    export_bundle(bundle, "diffusers", lora, "tiny")
    code, lines = rfft(*command(world, "adworld:test", out, *arguments, "--lora", lora))
    assert code == 2 and "it holds weights that are NaN or infinite" in lines[-1] and not out.exists()


def test_single_pictures_that_are_not_finite(
    rfft: Rfft, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried again, counted, named, and in the manifest without probabilities."""
    paint = recurrent.paint

    def first_breaks(*arguments: Any) -> torch.Tensor:
        images = paint(*arguments)
        images[0, 0, 0, 0] = torch.nan
        return images

    monkeypatch.setattr(recurrent, "paint", first_breaks)
    out = tmp_path / "pictures"
    code, lines = rfft(*command(world, "adworld:test", out, "--max-attempts", 2, "data.count=2"))
    rows = manifest(out)
    assert code == 0 and f"1 of 2 pictures are not finite: {rows[0]['id']}" in " ".join(lines)
    assert (rows[0]["accepted"], rows[0]["attempts"], rows[0]["not_finite"]) == (False, 2, True)
    assert rows[0]["probabilities"] is None and "not_finite" not in rows[1]
    assert "NaN" not in (out / "manifest.jsonl").read_text()


def test_a_prompt_that_is_too_long(rfft: Rfft, world: Path, products: Path, tmp_path: Path) -> None:
    """It is cut where the text encoder ends, and the user is told so in one short line."""
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"prompt": "oak " * 300 + "park"}]))
    code, lines = rfft(*command(world, products, tmp_path / "out", "--prompts", prompts, "--max-attempts", 1))
    told = [line for line in lines if "longer than" in line]
    assert code == 0 and len(told) == 1 and len(told[0]) < 120
    assert told[0].startswith("warning: 1 of 1 prompts are longer than the text encoder reads: up to 1,")


def test_photos_without_alpha(rfft: Rfft, world: Path, prompts: Path, tmp_path: Path) -> None:
    """White around the product becomes transparent, if that is asked for."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    white = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(white).rectangle([10, 10, 29, 29], fill="navy")
    white.save(photos / "box.png")
    arguments = ("--prompts", prompts, "--max-attempts", 1)
    code, lines = rfft(*command(world, photos, out, *arguments))
    assert code == 2 and "white_to_alpha" in lines[-1]
    assert rfft(*command(world, photos, out, *arguments, "--white-to-alpha"))[0] == 0
    painted = np.asarray(Image.open(out / "images/box.png"))
    navy = (painted == (0, 0, 128)).all(-1)
    assert navy.sum() == 38**2 and navy.shape == (64, 64)  # drawn at 0.6 of the canvas, painted around


def test_bad_input_leaves_nothing(
    rfft: Rfft, world: Path, products: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, empty, odd = tmp_path / "pictures", tmp_path / "empty", tmp_path / "odd"
    empty.mkdir()
    odd.mkdir()
    save_file({"a": torch.zeros(1)}, odd / "a.safetensors")
    wide, layer = tmp_path / "wide", "unet.down_blocks.0.resnets.0.conv1"
    wide.mkdir()
    tensors = {"lora_A": torch.zeros(2, 7, 3, 3), "lora_B": torch.zeros(5, 2, 1, 1)}
    save_file({f"{layer}.{name}.weight": t for name, t in tensors.items()}, wide / "a.safetensors")
    merged = tmp_path / "merged"
    for part in ("unet", "controlnet"):
        (merged / part).mkdir(parents=True)
        (merged / part / "config.json").touch()
    good = ("--prompts", prompts)
    mistakes: list[tuple[list[object], str]] = [
        (command(world, empty, out, *good), "no products here"),
        (command(world, products, out), "has no prompt"),
        (command(world, products, empty.parent, *good), "exists already"),
        (command(world, products, out, *good, "--lora", empty), "not the folder of one exported LoRA"),
        (command(world, products, out, *good, "--lora", odd), "is no LoRA for the bundle"),
        (command(world, products, out, *good, "--lora", wide), "it was trained on a base of other sizes"),
        (command(world, products, out, *good, "--lora", merged), "a merged export goes with --model"),
        (command(world, products, out, *good, "--model", "nowhere"), "bundle nowhere"),
    ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in mistakes:
        code, lines = rfft(*arguments)
        assert code == 2 and lines[-1].startswith("rfft: ") and message in lines[-1], lines
        assert not any("size mismatch" in line for line in lines)  # diffusers would list them all
        assert sorted(tmp_path.rglob("*")) == before


def test_out_of_memory(
    rfft: Rfft, world: Path, products: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = command(world, products, tmp_path / "pictures", "--prompts", prompts)
    with monkeypatch.context() as patched:
        patched.setattr(recurrent, "paint", no_memory)
        for size, first in ((4, "evaluate.batch_size=2 (the same"), (1, "trainer.mixed_precision=bf16")):
            code, lines = rfft(*arguments, f"evaluate.batch_size={size}")
            told = f"rfft: out of memory (CUDA out of memory). Try in this order: {first}"
            assert code == 2 and lines[-1].startswith(told), lines
            assert sorted(tmp_path.rglob("*")) == before
    half = ["trainer.mixed_precision=bf16", "model.dtype=bfloat16", "objective.precision=bf16"]
    assert rfft(*arguments, "--max-attempts", 1, *half)[0] == 0


def test_an_error_in_the_middle_leaves_nothing(
    world: Path,
    products: Path,
    prompts: Path,
    tmp_path: Path,
    rfft: Rfft,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[Path] = []

    def full_disk(path: Path, picture: object) -> None:
        written.append(path)
        path.touch()
        if len(written) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(generated.contact_sheet, "save_png", full_disk)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="No space"):
        rfft(*command(world, products, tmp_path / "pictures", "--prompts", prompts))
    assert len(written) == 2 and sorted(tmp_path.rglob("*")) == before
