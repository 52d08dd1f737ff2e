"""Simulated raters: small networks whose styles, products and seeds are neither RFNet's nor the judge's.

A rater has a taste of its own (a bias for each class) and is not always sure of hand (noise).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rfft.feedback.dataset import square
from rfft.models.pretrained import ASSETS
from rfft.rewards.judge import Judge, JudgeConfig
from rfft.training.pretrain.augment import augment
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, on_device
from rfft.training.pretrain.judge import BATCH
from rfft.training.pretrain.verdicts import VariantScenes, mixture, tokenize, tokenizer_for
from rfft.types import LABELS

SOURCE = "monitor"  # of rfft/adworld/styles.py: what neither RFNet nor the judge learns from
VARIANTS = ("render", "vae")  # as they are drawn, and as rf-tiny's autoencoder shows them
FIRST_SEED = 101
BIAS, NOISE = 0.5, 0.5  # standard deviations, of logits: of a rater's taste, and from picture to picture
SECOND_FAULT = 0.35  # a fault of this probability is ticked beside the likeliest
MARGIN = 0.1  # of P(available), within which two pictures are the same to a rater


def train_rater(number: int, out: Path, scenes: int, steps: int) -> Path:
    """Train rater `number` on scenes of its own, or go on with it; returns its folder.

    The recipe is the judge's, less its second task and its perturbations: people were not trained against.
    """
    folder = out / f"rater-{number}"
    if (folder / "config.json").exists():
        return folder
    seed = FIRST_SEED + number
    tokenizer = tokenizer_for(ASSETS, "rf-tiny")
    source = SOURCE, scenes, seed
    parts = [VariantScenes(source, variant, ASSETS / "rf-tiny", tokenizer) for variant in VARIANTS]
    shares = [1 / len(parts)] * len(parts)
    torch.manual_seed(seed)
    model = on_device(Judge(JudgeConfig(vocab_size=len(tokenizer)))).train()
    draw = mixture(parts, BATCH, shares, augment)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        with torch.autocast(device().type, torch.bfloat16):
            logits = model(batch.image, batch.product, batch.caption_ids, batch.caption_mask)
        return F.cross_entropy(logits.float(), batch.label, label_smoothing=0.02)

    settings = FitConfig(lr=2e-3, weight_decay=0.02, ema=0.99, seed=seed)
    run = PretrainRun(out, out / "state", steps, seed)
    fit(nn.ModuleDict({"rater": model}), loss_fn, settings, run, folder.name)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Look:
    """What a rater has before it."""

    picture: bytes
    product: bytes
    caption: str


class Rater:
    """A trained rater with its taste; the same picture gets the same answer."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.number = f"rater-{number}", number
        self.model = Judge.from_pretrained(folder).eval().requires_grad_(False)
        self.tokenizer: Any = tokenizer_for(ASSETS, "rf-tiny")
        taste = np.random.default_rng([FIRST_SEED, number])
        self.bias = torch.from_numpy(taste.normal(0, BIAS, len(LABELS))).float()

    def probabilities(self, look: Look) -> Tensor:
        """Return what the rater thinks of a picture, [5]."""
        image, product = (_decode(data, flags) for data, flags in _files(look))
        ids, mask = tokenize(self.tokenizer, [look.caption])
        logits = self.model(image[None], product[None], ids, mask)[0]
        seed = [self.number, *hashlib.sha256(look.picture).digest()]
        noise = np.random.default_rng(seed).normal(0, NOISE, len(LABELS))
        return (logits + self.bias + torch.from_numpy(noise).float()).softmax(-1)

    def label(self, look: Look) -> dict[str, Any]:
        """Return the answer to the task `labels`."""
        p = self.probabilities(look)
        likeliest = int(p.argmax())
        if likeliest == 0:
            return {"labels": [LABELS[0]]}
        ticked = [i for i in range(1, len(LABELS)) if i == likeliest or p[i] > SECOND_FAULT]
        return {"labels": [LABELS[i] for i in ticked]}

    def compare(self, first: Look, second: Look) -> dict[str, Any]:
        """Return the answer to the task `gsb`, of the picture that is shown first."""
        difference = float(self.probabilities(first)[0] - self.probabilities(second)[0])
        return {"overall": "same" if abs(difference) < MARGIN else "good" if difference > 0 else "bad"}


def _files(look: Look) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
    return (look.picture, cv2.IMREAD_COLOR_RGB), (look.product, cv2.IMREAD_UNCHANGED)


def _decode(data: bytes, flags: int) -> Tensor:
    """Return a picture [3,64,64] or an RGBA product [4,64,64] in [0,1]."""
    pixels: NDArray[np.uint8] = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if flags == cv2.IMREAD_UNCHANGED:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    return square(pixels, JudgeConfig.image_size).float() / 255
