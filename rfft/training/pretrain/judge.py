"""The judge's training: all that can be is another than RFNet's.

Another architecture and seed, scenes of other styles and products, a tokenizer of its own, no depth or
saliency maps, and another second task: sizes as numbers. What it still shares stands in
rfft/rewards/judge.py.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from rfft.adworld.scenes import load_scenes
from rfft.models.pretrained import halved
from rfft.rewards.judge import Judge, JudgeConfig, pool
from rfft.training.pretrain.augment import augment
from rfft.training.pretrain.base import build_tokenizer
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, on_device, start
from rfft.training.pretrain.verdicts import (
    EVENLY,
    REGIONS,
    REPORT,
    LabelledBatch,
    LogitsOf,
    Source,
    VariantScenes,
    mixture,
    named,
    perturbed,
    region_loss,
    scene_probabilities,
    scene_reports,
    write_report,
)

BATCH, SEED, STEPS = 48, 2, 16_000
NAME = "rf-tiny-judge"
SCENES: dict[str, Source] = {
    "render": ("judge", 40_000, SEED),
    "vae": ("judge", 6_000, SEED),
    "x0_hat": ("judge", 6_000, SEED),
}
VOCABULARY = 600  # tokens
# Of a pixel value in [0, 1], see verdicts.perturbed; 0.01 learned far more slowly (docs/adworld.md).
PERTURBATION = 0.0


def train(run: PretrainRun) -> None:
    """Train the judge, and report on validation scenes; `rfft adworld assess` adds the test scenes."""
    run.builds_on("base")
    folder = run.out / NAME
    tokenizer = own_tokenizer(folder)
    parts = [VariantScenes(SCENES[variant], variant, run.out / "rf-tiny", tokenizer) for variant in VARIANTS]
    torch.manual_seed(SEED)
    model = start(Judge, folder, JudgeConfig(vocab_size=len(tokenizer)))
    width = model.config.widths[-1]
    read, find = on_device(nn.Linear(2 * width, 2)), on_device(nn.Conv2d(width, len(REGIONS), 1))
    draw = mixture(parts, BATCH, EVENLY, augment)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        image = batch.image
        if PERTURBATION:
            image = perturbed(image, batch.label, partial(verdicts_on, model, batch), PERTURBATION)
        with torch.autocast(device().type, torch.bfloat16):
            seen = model.feature_map(image, batch.product, batch.caption_ids, batch.caption_mask)
            logits, sizes, regions = model.head(pool(seen)), read(pool(seen)), find(seen)
        label = F.cross_entropy(logits.float(), batch.label, label_smoothing=0.02)
        return label + 0.2 * size_loss(sizes.float(), batch.sizes) + 0.5 * region_loss(regions, batch.regions)

    nets = nn.ModuleDict({"judge": model, "read": read, "find": find})
    fit(nets, loss_fn, FitConfig(lr=2e-3, weight_decay=0.02, ema=0.995, seed=SEED), run, "judge")
    halved(model).save_pretrained(folder)
    found = scene_probabilities(reader(model), run.out, NAME, "val")
    write_report(folder / REPORT, named(scene_reports(found, "val"), "val"))


def own_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the judge's tokenizer in its folder; a new one learns from its captions and is written there."""
    if not (folder / "tokenizer.json").exists():
        captions = load_scenes(*SCENES["render"]).captions
        build_tokenizer(captions, VOCABULARY).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def verdicts_on(model: Judge, batch: LabelledBatch, image: Tensor) -> Tensor:
    """Return the logits [N,5] of pictures [N,3,H,W] in place of the batch's first N."""
    count = len(image)
    rest = batch.product[:count], batch.caption_ids[:count], batch.caption_mask[:count]
    with torch.autocast(device().type, torch.bfloat16):
        return model(image, *rest)


def size_loss(read: Tensor, sizes: Tensor) -> Tensor:
    """Return the smooth L1 distance of logarithms: read [B,2], and true sizes [B,2] in centimetres.

    They are the product's, as its caption states it, and that of what stands beside it; 0 is no size.
    """
    known = sizes > 0
    wanted = torch.where(known, sizes.clamp(min=1).log(), read.detach())
    return F.smooth_l1_loss(read, wanted)


def reader(model: Judge) -> LogitsOf:
    """Return a function that gives the judge's logits [B,5] for a batch."""

    def logits_of(batch: LabelledBatch) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return model(batch.image, batch.product, batch.caption_ids, batch.caption_mask)

    return logits_of
