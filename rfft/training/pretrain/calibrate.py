"""RFNet and judge made as sure as they are right: their logits divided by a temperature, chosen on val."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfft.metrics.calibration import calibration_error, temperature
from rfft.models.pretrained import halved
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import console
from rfft.training.pretrain.networks import Network, load_networks
from rfft.training.pretrain.verdicts import logits_on

SOURCES = (("val", 800, 9), ("val_styles", 800, 9))  # both chosen by, never published


def calibrate(out: Path) -> None:
    """Write RFNet and judge below `out` anew, with calibrated heads; a second time changes nothing."""
    for name, network in load_networks(out).items():
        logits, labels = _verdicts(network)
        found = temperature(logits, labels)
        before, after = (
            calibration_error((logits / t).softmax(-1).numpy(), labels.numpy()) for t in (1.0, found)
        )
        console.print(
            f"{name}: temperature {found:.3f}, calibration error {before:.3f} -> {after:.3f} on val"
        )
        _divide(network.model, found)
        halved(network.model).save_pretrained(out / name)


def _divide(model: Any, by: float) -> None:
    last = model.head[-1]
    with torch.no_grad():
        last.weight /= by
        last.bias /= by


def _verdicts(network: Network) -> tuple[Tensor, Tensor]:
    """Return logits [N,5] and labels [N] of all validation scenes in all variants."""
    found = [network.scenes(source, variant) for source in SOURCES for variant in VARIANTS]
    labels = [torch.tensor(scenes.scenes.label) for scenes in found]
    return torch.cat([logits_on(network.reader, scenes) for scenes in found]), torch.cat(labels)
