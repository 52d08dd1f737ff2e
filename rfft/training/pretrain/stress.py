"""What changes a network's verdicts though it should not: styles, JPEG, noise, tiny perturbations.

`rfft adworld assess --stress` writes stress.json beside RFNet's and the judge's weights. The sources of
scenes are those of adworld/styles.py; nothing is chosen by any but val and val_styles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rfft.adworld.scenes import load_scenes
from rfft.metrics.calibration import calibration_error, reliability
from rfft.metrics.classification import agreement, classification_report
from rfft.training.pretrain.augment import jpeg
from rfft.training.pretrain.fit import console
from rfft.training.pretrain.networks import Network
from rfft.training.pretrain.verdicts import LabelledBatch, LogitsOf, logits_on
from rfft.types import LABELS

SOURCES = ("val", "test", "val_styles", "test_styles", "new_styles", "new_products", "new_places")
COUNT, SEED = 800, 9  # scenes of each source, as they are drawn
ATTACKED, STEPS, SIZE = 192, 10, 2 / 255  # scenes, steps and reach of the perturbation
PARTS = ("shadow", "backdrop", "ground", "props")  # of a scene's style, but for the faults'
FAULTS = {"space_mismatch": "floating", "indistinctiveness": "hide", "shape_hallucination": "part"}
AT_ONCE = 64

Change = Callable[[Tensor], Tensor]


def probabilities(network: Network, source: str, change: Change | None = None) -> NDArray[np.float32]:
    """Return class probabilities [N,5] of a source's scenes, whose pictures `change` changes first."""
    found: NDArray[np.float32] = (
        logits_on(network.reader, network.scenes((source, COUNT, SEED)), change).softmax(-1).numpy()
    )
    return found


def _shifted(image: Tensor) -> Tensor:
    return F.pad(image, (1, 0, 0, 0), mode="replicate")[..., :-1]


def _noisy(image: Tensor) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + 0.02 * noise.to(image)).clamp(0, 1)


CHANGES: Mapping[str, Change] = {
    "jpeg 75": lambda image: jpeg(image.cpu(), torch.full((len(image),), 75)).to(image),
    "noise 0.02": _noisy,
    "one pixel's shift": _shifted,
    "brighter by 10 %": lambda image: (1.1 * image).clamp(0, 1),
}


def stress(network: Network, others: Mapping[str, Network]) -> dict[str, Any]:
    """Return all figures of a network; `others` are asked what they say of the pictures that deceive it."""
    found = {source: probabilities(network, source) for source in SOURCES}
    report: dict[str, Any] = {"sources": {}}
    for source, said in found.items():
        labels = np.asarray(load_scenes(source, COUNT, SEED).label)
        metrics = classification_report(said, labels, LABELS)
        row = {name: metrics[name] for name in ("macro_f1", "accuracy")}
        row |= {"ap_available": metrics["classes"]["available"]["ap"]}
        row |= {f"f1_{name}": metrics["classes"][name]["f1"] for name in LABELS}
        row |= {"calibration_error": calibration_error(said, labels)}
        row |= {"kappa_with_labels": agreement(said.argmax(1), labels, len(LABELS))[1]}
        report["sources"][source] = row
        console.print(network.name, source, {name: round(value, 3) for name, value in row.items()})
    for source in ("test", "test_styles"):
        report[f"reliability/{source}"] = reliability(found[source], load_scenes(source, COUNT, SEED).label)
        report[f"styles/{source}"] = styles(found[source], source)
        report[f"changed/{source}"] = {
            name: float((probabilities(network, source, change).argmax(1) != found[source].argmax(1)).mean())
            for name, change in CHANGES.items()
        }
        console.print(network.name, source, report[f"changed/{source}"])
    report["attack/test"] = attack(network, "test", others)
    console.print(network.name, "test", report["attack/test"])
    return report


def styles(probabilities: NDArray[np.floating], source: str) -> dict[str, dict[str, float]]:
    """Return, by style, how often the verdict is right.

    A fault's styles are counted on scenes with that fault, all others on available scenes.
    """
    scenes = load_scenes(source, COUNT, SEED)
    right = probabilities.argmax(1) == scenes.label
    groups: dict[str, list[bool]] = {}
    for style, label, hit in zip(scenes.styles, scenes.label, right, strict=True):
        name = LABELS[label]
        parts = PARTS if name == "available" else (FAULTS[name],) if name in FAULTS else ("props",)
        for part in parts:
            groups.setdefault(f"{name}: {part} {style[part]}", []).append(bool(hit))
    return {
        name: {"right": float(np.mean(hits)), "count": len(hits)} for name, hits in sorted(groups.items())
    }


def attack(network: Network, source: str, others: Mapping[str, Network]) -> dict[str, float]:
    """Return which share of refused pictures ten steps of a tiny perturbation make accepted.

    The steps are projected gradient descent (arXiv 1706.06083) of the cross-entropy towards "available",
    through all that the network sees of the picture; pixels move by SIZE at most. For each other network: the
    share of what deceived this one that it accepts, too.
    """
    scenes, refused, deceived = network.scenes((source, COUNT, SEED)), 0, 0
    accepted = dict.fromkeys(others, 0)
    for start in range(0, ATTACKED, AT_ONCE):
        index = np.arange(start, min(start + AT_ONCE, ATTACKED))
        batch = scenes.batch(index)
        before = network.reader(batch).argmax(-1) != 0
        batch.image = perturb(network.reader, batch)
        with torch.no_grad():
            fooled = before & (network.reader(batch).argmax(-1) == 0)
        refused, deceived = refused + int(before.sum()), deceived + int(fooled.sum())
        for name, other in others.items():
            theirs = other.scenes((source, COUNT, SEED)).batch(index)
            theirs.image = batch.image
            with torch.no_grad():
                accepted[name] += int((fooled & (other.reader(theirs).argmax(-1) == 0)).sum())
    shares = {f"of these {name} accepts": count / max(deceived, 1) for name, count in accepted.items()}
    return {"refused": refused, "deceived": deceived / max(refused, 1), **shares}


def perturb(reader: LogitsOf, batch: LabelledBatch) -> Tensor:
    """Return the batch's pictures, moved towards "available"."""
    first, available = batch.image, torch.zeros_like(batch.label)
    moved = first
    for _ in range(STEPS):
        batch.image = moved.detach().requires_grad_()
        loss = F.cross_entropy(reader(batch).float(), available, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, batch.image)
        step = moved - SIZE / 4 * gradient.sign()
        moved = (first + (step - first).clamp(-SIZE, SIZE)).clamp(0, 1).detach()
    return moved
