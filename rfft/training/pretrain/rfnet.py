"""What the embedded RFNet says of AdWorld's scenes, and what it depends on; `rfft rfnet train` trains it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rfft.rewards.maps import MapNet
from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain.fit import device
from rfft.training.pretrain.verdicts import (
    LabelledBatch,
    LogitsOf,
    scene_probabilities,
    scene_reports,
)

NAME = "rf-tiny-rfnet"
ABLATION = "ablation.json"  # metrics of networks that went without an input
CONTROL = "none"  # the ablation's other arm: as many further steps with every input
Reports = dict[str, dict]
PLACES = {
    "o": (1,),
    "g": (0,),
    "d": (2,),
    "s": (3,),
    "c": (4, 5),
}  # of the modalities among RFNet's arguments


def add_ablation(path: Path, dropped: str, steps: int, reports: Reports) -> None:
    """Write macro F1 and AP(available) for each variant beside those of the other ablations."""
    found = json.loads(path.read_text()) if path.exists() else {}
    metrics = {
        variant: {"macro_f1": values["macro_f1"], "ap": values["classes"]["available"]["ap"]}
        for variant, values in reports.items()
    }
    path.write_text(json.dumps(found | {dropped: {"steps": steps} | metrics}, indent=1))


def inputs_with_maps(out: Path) -> Callable[[LabelledBatch], tuple[Tensor, ...]]:
    """Return a function that gives RFNet's arguments for a batch, with the maps of the networks in `out`."""
    maps = [
        MapNet.from_pretrained(out / f"rf-tiny-{kind}").to(device()).requires_grad_(False)
        for kind in ("depth", "saliency")
    ]

    def inputs(batch: LabelledBatch) -> tuple[Tensor, ...]:
        with torch.autocast(device().type, torch.bfloat16):
            depth, saliency = (net(batch.image) for net in maps)
        return batch.image, batch.product, depth, saliency, batch.caption_ids, batch.caption_mask

    return inputs


def reader(model: RFNet, out: Path, mixed_up: str | None = None) -> LogitsOf:
    """Return a function that gives RFNet's logits [B,5] for a batch.

    `mixed_up` names a modality of which every scene gets its neighbour's.
    """
    inputs = inputs_with_maps(out)
    places = PLACES[mixed_up] if mixed_up else ()

    def logits_of(batch: LabelledBatch) -> Tensor:
        given = [x.roll(1, 0) if i in places else x for i, x in enumerate(inputs(batch))]
        with torch.autocast(device().type, torch.bfloat16):
            return model(*given)

    return logits_of


def dependence(model: RFNet, out: Path) -> dict[str, dict[str, float]]:
    """Return macro F1 on the test scenes, for each variant, when one modality is another scene's."""
    found = {}
    for modality in PLACES:
        probabilities = scene_probabilities(reader(model, out, modality), out, NAME, "test")
        reports = scene_reports(probabilities, "test")
        found[modality] = {variant: report["macro_f1"] for variant, report in reports.items()}
    return found
