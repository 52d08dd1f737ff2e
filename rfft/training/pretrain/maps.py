"""The depth and saliency networks: AdWorld knows both maps of every scene it draws."""

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.adworld.scenes import Scenes, load_scenes
from rfft.rewards.maps import MapNet, MapNetConfig
from rfft.training.pretrain.degraded import load_variant
from rfft.training.pretrain.fit import FitConfig, PretrainRun, console, device, fit, start

BATCH, SCENES, STEPS = 32, 10_000, 1000
TEST_SCENES = 512
VARIANTS = ("render", "vae")


def train(kind: str, run: PretrainRun) -> None:
    """Train the network for kind "depth" or "saliency" on renders and their VAE round trips."""
    run.builds_on("base")
    scenes = load_scenes("train", SCENES, seed=1)
    images = [load_variant("train", SCENES, 1, variant, run.out / "rf-tiny") for variant in VARIANTS]
    folder = run.out / f"rf-tiny-{kind}"
    model = start(MapNet, folder, MapNetConfig(widths=[12, 24, 48, 64]))

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(len(scenes), size=BATCH)
        image, target = _pair(scenes, images[step % len(images)], kind, index)
        with torch.autocast(device().type, torch.bfloat16):
            logits = model.logits(image)
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    fit(model, loss_fn, FitConfig(lr=3e-3, ema=0.99), run, kind)
    copy.deepcopy(model).half().save_pretrained(folder)
    for variant in VARIANTS:
        console.print(
            f"{kind}: mean absolute error on test, {variant}: {test_error(model, kind, variant, run.out):.4f}"
        )


def _pair(scenes: Scenes, images: np.ndarray, kind: str, index: np.ndarray) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float().div(255)
    return image.to(device(), memory_format=torch.channels_last), scenes.pixels(kind, index).to(device())


@torch.no_grad()
def test_error(model: MapNet, kind: str, variant: str, out: Path) -> float:
    scenes = load_scenes("test", TEST_SCENES, seed=9)
    images = load_variant("test", TEST_SCENES, 9, variant, out / "rf-tiny")
    image, target = _pair(scenes, images, kind, np.arange(TEST_SCENES))
    return (model.eval()(image) - target).abs().mean().item()
