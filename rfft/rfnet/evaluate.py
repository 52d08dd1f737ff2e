"""What an RFNet is worth on labelled pictures: metrics per class, confusion matrix, table and picture.

Shapes: N pictures, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table
from torch import Tensor

from rfft.build import caption_tokenizer
from rfft.errors import UserError
from rfft.feedback.dataset import FeedbackDataset, FeedbackSource, Reading, targets_of
from rfft.metrics.classification import classification_report
from rfft.metrics.verdict import AVAILABLE, NOT_FINITE, verdicts_of
from rfft.models.pretrained import CONFIG_NAME
from rfft.rewards.rfnet import RFNet
from rfft.rfnet.config import load_config
from rfft.rfnet.data import (
    FolderPictures,
    are_shards,
    batches,
    build_maps,
    fill_maps,
    network_inputs,
    open_shards,
    read_folders,
)
from rfft.rfnet.schema import RFNetTrainingConfig
from rfft.types import label_names
from rfft.utils.log import messages, write_atomically

EXPORT, EVALUATION, CONFUSION = "rfnet", "evaluation.json", "confusion.png"
Report = dict[str, Any]


@torch.no_grad()
def predict(
    model: RFNet, source: Iterable[dict[str, Any]], inputs: Callable[[dict[str, Any]], dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return probabilities [N,K] and targets [N,K], on the CPU; N is 0 for a process without a part.

    `inputs` makes the network's arguments of a batch; targets: see feedback.dataset.targets_of.
    """
    classes = model.config.num_labels
    found = [(torch.empty(0, classes), torch.empty(0, classes))]
    for batch in source:
        logits = model(**inputs(batch))
        found.append((logits.float().softmax(-1).cpu(), targets_of(batch, classes).cpu()))
    probabilities, targets = zip(*found, strict=True)
    return torch.cat(probabilities), torch.cat(targets)


def report(probabilities: Tensor, targets: Tensor) -> Report:
    """Return the metrics of class probabilities [N,K] on targets [N,K], the share of each class.

    A picture's label is the class of the largest share. `agreement` is the mean share of the verdict's class:
    so many people say the same; `agreement_available` likewise of available or not; `loss` is the plain
    cross-entropy. Probabilities that are not finite count as those of a verdict that is surely wrong.
    """
    labels = targets.argmax(dim=1)
    logarithms = probabilities.nan_to_num(0.0).clamp_min(1e-12).log()
    metrics = classification_report(
        probabilities.numpy(), labels.numpy(), label_names(probabilities.shape[1])
    )
    return {
        **agreement(probabilities, targets),
        "pictures": len(labels),
        "ap_available": metrics["classes"]["available"]["ap"],
        **metrics,
        "loss": float(-(targets * logarithms).sum(dim=1).mean()),
    }


def agreement(probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the two agreements of `report`, of probabilities and targets [N,K]."""
    verdicts, available = verdicts_of(probabilities), targets[:, AVAILABLE]
    finite = (verdicts != NOT_FINITE).float()
    said = targets.gather(1, verdicts.clamp(min=0)[:, None])[:, 0]
    coarse = torch.where(verdicts == AVAILABLE, available, 1 - available)
    return {
        "agreement": float((said * finite).mean()),
        "agreement_available": float((coarse * finite).mean()),
    }


def scalars(metrics: Report) -> dict[str, float]:
    """The metrics under the names that trackers and metrics.jsonl have them by."""
    names = "ap_available", "macro_f1", "accuracy", "agreement", "agreement_available", "loss"
    flat = {name: metrics[name] for name in names}
    for label, values in metrics["classes"].items():
        flat |= {f"{name}_{label}": values[name] for name in ("precision", "recall", "f1", "ap")}
    return {f"eval/{name}": value for name, value in flat.items()}


def write(folder: Path, metrics: Report) -> None:
    """evaluation.json and confusion.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / EVALUATION, json.dumps(metrics, indent=2) + "\n")
    confusion_picture(metrics).savefig(folder / CONFUSION, dpi=120)


def table(metrics: Report) -> Table:
    shown = Table(
        "class",
        "precision",
        "recall",
        "F1",
        "AP",
        "pictures",
        title="RFNet's verdicts, in percent",
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for label, values in metrics["classes"].items():
        rates = [f"{100 * values[name]:.1f}" for name in ("precision", "recall", "f1", "ap")]
        shown.add_row(label.replace("_", " "), *rates, str(values["support"]))
    shown.caption = (
        f"AP(available) {metrics['ap_available']:.1%}, macro F1 {metrics['macro_f1']:.1%}, "
        f"accuracy {metrics['accuracy']:.1%}, agrees with {metrics['agreement']:.1%} of what people said"
    )
    return shown


def confusion_picture(metrics: Report) -> Figure:
    """Rows: true classes; the shade is the share of the row, the number the pictures."""
    names = [label.replace("_", " ") for label in metrics["classes"]]
    counts = np.asarray(metrics["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 + 0.9 * len(names), 1.2 + 0.8 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("verdict")
    axes.set_ylabel("label")
    for (row, column), value in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(value), ha="center", va="center", color=colour)
    return figure


def evaluate(source: Path, data: Path, out: Path | None, changes: dict[str, Any], batch_size: int) -> Report:
    """Judge a folder's pictures, in RF1M's form or in shards; writes into `out` (None: the run's folder).

    source: a run of `rfft rfnet train`, an RFNet folder or the name of an embedded one; changes: of the
    settings in group `maps`, which are the run's, or the defaults.
    """
    is_run = (source / EXPORT / CONFIG_NAME).is_file()
    if out is None and not is_run:
        raise UserError(f"{source} is no run of `rfft rfnet train`: say with --out where the metrics go")
    trained = load_config(source / "config.yaml") if is_run else RFNetTrainingConfig()
    folder = source / EXPORT if is_run else source
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = RFNet.from_pretrained(folder).to(device)
    shape = model.config
    learned_from = {kind: getattr(shape, kind) for kind in ("depth", "saliency") if getattr(shape, kind)}
    maps = replace(trained.maps, **(learned_from | changes))
    size, coarse = shape.picture_size or shape.image_size, shape.num_labels == 2
    pictures: FeedbackSource
    if are_shards([str(data)]):
        pictures = open_shards([str(data)], size, maps, coarse)
    else:
        records = read_folders([str(data)])
        known = build_maps(maps, model.config.drop)
        fill_maps(known, records, maps, device)
        pictures = FolderPictures(FeedbackDataset(records, size, known, coarse), coarse)
    inputs = partial(network_inputs, tokenizer=caption_tokenizer(str(folder)), device=device)
    console, found = messages(), batches(pictures.once(Reading(batch_size)))
    total = -(-sum(pictures.counts) // batch_size)
    shown = track(found, "judging", total=total, console=console, transient=True)
    metrics = {"data": str(data), **report(*predict(model, shown, inputs))}
    write(out or source, metrics)
    console.print(table(metrics))
    console.print(f"written: {(out or source) / EVALUATION}, {(out or source) / CONFUSION}", soft_wrap=True)
    return metrics
