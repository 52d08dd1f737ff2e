"""RFNet and judge made as sure as they are right: their logits divided by a temperature, chosen on val."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rfft.metrics.calibration import calibration_error, temperature
from rfft.rewards.judge import Judge
from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain import judge, rfnet
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import console, device
from rfft.training.pretrain.verdicts import LogitsOf, VariantScenes, tokenizer_for

SOURCES = (("val", 800, 9), ("val_styles", 800, 9))  # both chosen by, never published


def calibrate(out: Path) -> None:
    """Write RFNet and judge below `out` anew, with calibrated heads; a second time changes nothing."""
    reward = RFNet.from_pretrained(out / rfnet.NAME).float().to(device()).eval()
    opponent = Judge.from_pretrained(out / judge.NAME).float().to(device()).eval()
    for name, model, reader in (
        (rfnet.NAME, reward, rfnet.reader(reward, out)),
        (judge.NAME, opponent, judge.reader(opponent)),
    ):
        logits, labels = _verdicts(name, reader, out)
        found = temperature(logits, labels)
        before, after = (
            calibration_error((logits / t).softmax(-1).numpy(), labels.numpy()) for t in (1.0, found)
        )
        console.print(
            f"{name}: temperature {found:.3f}, calibration error {before:.3f} -> {after:.3f} on val"
        )
        _divide(model, found)
        copy.deepcopy(model).half().save_pretrained(out / name)


def _divide(model: Any, by: float) -> None:
    last = model.head[-1]
    with torch.no_grad():
        last.weight /= by
        last.bias /= by


@torch.no_grad()
def _verdicts(name: str, reader: LogitsOf, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [N,5] and labels [N] of all validation scenes in all variants."""
    logits, labels = [], []
    for source in SOURCES:
        for variant in VARIANTS:
            scenes = VariantScenes(source, variant, out / "rf-tiny", tokenizer_for(out, name))
            for index in np.array_split(np.arange(len(scenes)), len(scenes) // 100):
                batch = scenes.batch(index)
                logits.append(reader(batch).float().cpu())
                labels.append(batch.label.cpu())
    return torch.cat(logits), torch.cat(labels)
