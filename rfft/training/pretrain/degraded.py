"""Scenes as the generator would show them: after a VAE round trip, and as x0_hat foreseen in one step.

The label survives; the artefacts are those that RFNet meets when it judges the generator's pictures.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.adworld.scenes import Scenes, cache_folder, load_scenes
from rfft.data.conditions import encode_samples
from rfft.data.samples import Sample
from rfft.diffusion.compositing import paste
from rfft.diffusion.sampling import add_noise
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle
from rfft.objectives.base import predict, render
from rfft.training.pretrain.fit import device
from rfft.types import Batch
from rfft.utils.atomic_io import new_file

VARIANTS = ("render", "vae", "x0_hat")
STEPS, LAST, GUIDANCE = 40, 10, 3.0


def load_variant(split: str, count: int, seed: int, variant: str, bundle_folder: Path) -> NDArray[np.uint8]:
    """The scenes' images [N, 64, 64, 3] in one variant; made on the first call, memory-mapped after that."""
    scenes = load_scenes(split, count, seed)
    if variant == "render":
        return scenes.image
    path = cache_folder() / f"{variant}-{_fingerprint(bundle_folder, variant)}-{split}-{count}-{seed}.npy"
    if not path.exists():
        bundle = load_bundle(bundle_folder).to(device())
        parts = [
            degrade(bundle, scenes, index, variant, seed)
            for index in np.array_split(np.arange(count), count // 64 + 1)
        ]
        with new_file(path) as file:
            np.save(file, np.concatenate(parts))
    return np.load(path, mmap_mode="r")


def _fingerprint(bundle: Path, variant: str) -> str:
    """Of the weights that make a variant, so that no pictures of an earlier model are read."""
    parts = ("vae",) if variant == "vae" else ("vae", "unet", "controlnet", "text_encoder")
    files = [file for part in parts for file in sorted((bundle / part).glob("*.safetensors"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


@torch.no_grad()
def degrade(
    bundle: Bundle, scenes: Scenes, index: NDArray[np.int64], variant: str, seed: int
) -> NDArray[np.uint8]:
    """Scenes `index` in a variant, [B, 64, 64, 3]: the product's own pixels are kept, as in generation."""
    image, product = (scenes.pixels(name, index).to(device()) for name in ("image", "product"))
    rng = np.random.default_rng([seed, int(index[0])])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    with torch.autocast(device().type, torch.bfloat16):
        latent = bundle.encode_image(image)
        if variant == "x0_hat":
            batch = _batch(bundle, scenes, index, product, generator)
            schedule, k = bundle.schedule(STEPS), int(rng.integers(STEPS - LAST, STEPS))
            x = add_noise(latent, batch.noise, schedule.a[k], schedule.s[k])
            latent = predict(bundle.denoiser, x, k, batch, schedule, GUIDANCE).guided.x0
            picture = render(bundle, latent, batch)
        else:
            picture = paste(bundle.decode(latent), product)
    pixels = (picture.float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def _batch(
    bundle: Bundle, scenes: Scenes, index: NDArray[np.int64], product: Tensor, generator: torch.Generator
) -> Batch:
    samples = [
        Sample(str(i), canvas, scenes.captions[i], scenes.prompts[i])
        for i, canvas in zip(index, product.cpu(), strict=True)
    ]
    batch = encode_samples(bundle, samples)
    return replace(batch, noise=torch.randn(batch.x_o.shape, generator=generator)).to(device())
