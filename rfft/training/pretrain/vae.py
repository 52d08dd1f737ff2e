"""rf-tiny's autoencoder: 64 x 64 pixels to 16 x 16 x 4 latents."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from rfft.adworld.scenes import Scenes, load_scenes
from rfft.training.pretrain.fit import FitConfig, PretrainRun, console, device, fit, on_device

CROP, BATCH, STEPS, SCENES = 32, 32, 3000, 30_000
TEST_SCENES = 512


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


def _crops(scenes: Scenes, rng: np.random.Generator) -> Tensor:
    """Random crops in [-1, 1]: a convolutional autoencoder learns the same from a quarter of the pixels."""
    index = np.sort(rng.integers(len(scenes), size=BATCH))
    y, x = rng.integers(0, 64 - CROP + 1, size=2)
    return scenes.pixels("image", index)[:, :, y : y + CROP, x : x + CROP] * 2 - 1


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 of pixels, of their differences (edges) and of 4 x 4 means (colour, which is else learned last)."""
    edges = sum(F.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim)) for dim in (-1, -2))
    colour = F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(pixels, 4))
    return F.l1_loss(decoded, pixels) + 0.5 * edges + 2.0 * colour


def train(run: PretrainRun) -> None:
    """Write run.out/rf-tiny/vae; goes on from the weights that are there, if any."""
    scenes = load_scenes("train", SCENES, seed=1)
    folder = run.out / "rf-tiny" / "vae"
    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32) if folder.exists() else build()
    on_device(model).train()

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        pixels = _crops(scenes, rng).to(device(), memory_format=torch.channels_last)
        with torch.autocast(device().type, torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            decoded = model.decode(posterior.sample()).sample.float()
        kl = posterior.kl().mean() / pixels[0].numel()
        return reconstruction_loss(decoded, pixels) + 1e-4 * kl

    fit(model, loss_fn, FitConfig(lr=2e-3, weight_decay=0.0, ema=0.998), run, "vae")
    model.register_to_config(scaling_factor=1 / _latent_std(model, scenes))
    model.half().save_pretrained(folder)
    console.print(f"vae: PSNR on test {psnr(AutoencoderKL.from_pretrained(folder)):.2f} dB")


@torch.no_grad()
def _latent_std(model: AutoencoderKL, scenes: Scenes) -> float:
    pixels = scenes.pixels("image", np.arange(min(512, len(scenes)))).to(device()) * 2 - 1
    return model.encode(pixels).latent_dist.mean.std().item()


@torch.no_grad()
def psnr(model: AutoencoderKL) -> float:
    """Mean reconstruction PSNR in dB over test scenes."""
    scenes, model = load_scenes("test", TEST_SCENES, seed=9), model.float().to(device())
    pixels = scenes.pixels("image", np.arange(TEST_SCENES)).to(device())
    decoded = torch.cat(
        [model.decode(model.encode(p * 2 - 1).latent_dist.mode()).sample for p in pixels.split(64)]
    )
    mse = (decoded.clamp(-1, 1) / 2 + 0.5 - pixels).pow(2).mean((1, 2, 3))
    return (-10 * mse.log10()).mean().item()
