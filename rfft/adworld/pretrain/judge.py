"""The judge: another architecture, seed and set of scenes than RFNet's, and no depth or saliency maps."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.adworld.pretrain.degraded import VARIANTS
from rfft.adworld.pretrain.fit import FitConfig, Run, device, fit, start
from rfft.adworld.pretrain.verdicts import (
    REPORT,
    Labelled,
    LabelledBatch,
    mixture,
    test_reports,
    write_report,
)
from rfft.models.judge import Judge, JudgeConfig

BATCH, SCENES, SEED, STEPS = 48, 5_000, 2, 1000


def train(run: Run) -> None:
    parts = [Labelled("train", SCENES, SEED, variant, run.out) for variant in VARIANTS]
    tokenizer = parts[0].tokenizer
    torch.manual_seed(SEED)
    folder = run.out / "rf-tiny-judge"
    model = start(Judge, folder, JudgeConfig(vocab_size=len(tokenizer)))
    draw = mixture(parts, BATCH)

    def logits_of(batch: LabelledBatch) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return model(batch.image, batch.product, batch.caption_ids, batch.caption_mask)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        return F.cross_entropy(logits_of(batch).float(), batch.label, label_smoothing=0.02)

    fit(model, loss_fn, FitConfig(lr=2e-3, weight_decay=0.02, ema=0.995, seed=SEED), run, "judge")
    model.save_pretrained(folder, half=True)
    tokenizer.save_pretrained(folder)
    write_report(folder / REPORT, test_reports(logits_of, run.out))
