"""The depth and saliency networks: AdWorld knows both maps of every scene it draws.

They learn from the scenes that RFNet learns from, whose eyes they are.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.adworld.scenes import Scenes, load_scenes
from rfft.models.pretrained import halved
from rfft.rewards.maps import MapNet, MapNetConfig
from rfft.training.pretrain.degraded import load_variant
from rfft.training.pretrain.fit import FitConfig, PretrainRun, console, device, fit, start
from rfft.training.pretrain.verdicts import Source

BATCH, STEPS = 32, 2000
SCENES: dict[str, Source] = {"render": ("rfnet", 50_000, 1), "vae": ("rfnet", 6_000, 1)}
TESTS: tuple[Source, ...] = (("test", 800, 9), ("test_styles", 800, 9))


def train(kind: str, run: PretrainRun) -> None:
    """Train the network for kind "depth" or "saliency" on renders and VAE round trips."""
    run.builds_on("base")
    parts = [
        (load_scenes(*source), load_variant(*source, variant, run.out / "rf-tiny"))
        for variant, source in SCENES.items()
    ]
    folder = run.out / f"rf-tiny-{kind}"
    model = start(MapNet, folder, MapNetConfig(widths=[12, 24, 48, 64]))

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        scenes, images = parts[step % len(parts)]
        image, target = _pair(scenes, images, kind, rng.integers(len(scenes), size=BATCH))
        with torch.autocast(device().type, torch.bfloat16):
            logits = model.logits(image)
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    fit(model, loss_fn, FitConfig(lr=3e-3, ema=0.99), run, kind)
    halved(model).save_pretrained(folder)
    for source in TESTS:
        error = test_error(model, kind, source)
        console.print(f"{kind}: mean absolute error on {source[0]}: {error:.4f}")


def _pair(scenes: Scenes, images: np.ndarray, kind: str, index: np.ndarray) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float().div(255)
    return image.to(device(), memory_format=torch.channels_last), scenes.pixels(kind, index).to(device())


@torch.no_grad()
def test_error(model: MapNet, kind: str, source: Source) -> float:
    """Return the mean absolute error, in [0,1], of the maps of a source's scenes as they are drawn."""
    scenes, errors = load_scenes(*source), []
    for index in np.array_split(np.arange(len(scenes)), 8):
        image, target = _pair(scenes, scenes.image, kind, index)
        errors.append((model(image) - target).abs().mean().item())
    return float(np.mean(errors))
