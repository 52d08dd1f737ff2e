"""The judge's training: another architecture, seed and set of scenes than RFNet's, no depth or saliency maps.

What it shares with RFNet stands in rfft/rewards/judge.py.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from rfft.adworld.assets import RESIZED
from rfft.rewards.judge import Judge, JudgeConfig
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, start
from rfft.training.pretrain.verdicts import (
    COUNTS,
    EVENLY,
    REPORT,
    LabelledBatch,
    LogitsOf,
    VariantScenes,
    attribute_reader,
    mixture,
    named,
    scene_probabilities,
    scene_reports,
    tokenizer_for,
    verdict_loss,
    write_report,
)

BATCH, SEED, STEPS = 48, 2, 3000
NAME = "rf-tiny-judge"


def train(run: PretrainRun) -> None:
    """Train the judge, and report on validation scenes; `rfft adworld assess` adds the test scenes."""
    run.builds_on("base")
    tokenizer = tokenizer_for(run.out, NAME)
    parts = [
        VariantScenes((RESIZED, COUNTS[variant], SEED), variant, run.out / "rf-tiny", tokenizer)
        for variant in VARIANTS
    ]
    torch.manual_seed(SEED)
    folder = run.out / NAME
    model = start(Judge, folder, JudgeConfig(vocab_size=len(tokenizer)))
    read = attribute_reader(2 * model.config.widths[-1])
    draw = mixture(parts, BATCH, EVENLY)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        with torch.autocast(device().type, torch.bfloat16):
            features = model.features(batch.image, batch.product, batch.caption_ids, batch.caption_mask)
            return verdict_loss(model.head(features), read(features), batch)

    nets = nn.ModuleDict({"judge": model, "read": read})
    fit(nets, loss_fn, FitConfig(lr=2e-3, weight_decay=0.02, ema=0.995, seed=SEED), run, "judge")
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = scene_probabilities(reader(model), run.out, NAME, "val")
    write_report(folder / REPORT, named(scene_reports(found, "val"), "val"))


def reader(model: Judge) -> LogitsOf:
    """Return a function that gives the judge's logits [B,5] for a batch."""

    def logits_of(batch: LabelledBatch) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return model(batch.image, batch.product, batch.caption_ids, batch.caption_mask)

    return logits_of
