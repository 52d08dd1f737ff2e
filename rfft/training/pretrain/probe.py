"""The probe: reads surface, place, prop and light off a picture, to measure how far a prompt was followed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rfft.adworld.scenes import ATTRIBUTES
from rfft.models.pretrained import halved
from rfft.rewards.probe import Probe, ProbeConfig
from rfft.training.pretrain.augment import mirror
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, start
from rfft.training.pretrain.verdicts import (
    ASSESSED,
    COUNTS,
    EVENLY,
    REPORT,
    LabelledBatch,
    VariantScenes,
    attribute_loss,
    mixture,
    tokenizer_for,
    write_report,
)

BATCH, SEED, STEPS = 48, 2, 2000
NAME = "rf-tiny-probe"


def train(run: PretrainRun) -> None:
    run.builds_on("base")
    tokenizer = tokenizer_for(run.out, "rf-tiny")  # not used: the probe sees no caption
    parts = [
        VariantScenes(("train", COUNTS[variant], SEED), variant, run.out / "rf-tiny", tokenizer)
        for variant in VARIANTS
    ]
    torch.manual_seed(3)
    classes = {name: list(values) for name, values in ATTRIBUTES.items()}
    folder = run.out / NAME
    model = start(Probe, folder, ProbeConfig(classes))
    draw = mixture(parts, BATCH, EVENLY, mirror)  # it reads light and surface: colours must stay

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        return attribute_loss(list(read(model, batch).values()), batch.attributes)

    fit(model, loss_fn, FitConfig(lr=2e-3, weight_decay=0.02, ema=0.995, seed=3), run, "probe")
    halved(model).save_pretrained(folder)
    write_report(folder / REPORT, accuracies(model, run.out))


def read(model: Probe, batch: LabelledBatch) -> dict[str, Tensor]:
    """Return the probe's logits [B,K] for each attribute."""
    with torch.autocast(device().type, torch.bfloat16):
        return model(batch.image, batch.product)


@torch.no_grad()
def accuracies(model: Probe, out: Path) -> dict[str, dict[str, float]]:
    """Return the accuracy of each attribute, for each variant of the validation and of the test scenes."""
    report = {}
    for split, source in ASSESSED.items():
        for variant in VARIANTS:
            data = VariantScenes(source, variant, out / "rf-tiny", tokenizer_for(out, "rf-tiny"))
            hits = []
            for chunk in np.array_split(np.arange(len(data)), len(data) // 100):
                batch = data.batch(chunk)
                found = torch.stack([logits.argmax(-1) for logits in read(model, batch).values()], 1)
                hits.append((found == batch.attributes[:, : len(ATTRIBUTES)]).float())
            report[f"{split}/{variant}"] = dict(
                zip(ATTRIBUTES, torch.cat(hits).mean(0).tolist(), strict=True)
            )
    return report
