"""AdWorld's scenes as pictures to train RFNet on: as they are drawn, and as a generator would show them.

Batches are dicts of float pictures in [0,1], caption tokens, labels and attributes; the networks of group
`maps` make depth and saliency of every batch, as they do where RFNet is a reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rfft.errors import UserError
from rfft.feedback.dataset import Reading
from rfft.models.pretrained import ASSETS
from rfft.rewards.rfnet import RFNet, to_map
from rfft.rfnet.data import KINDS, LOAD
from rfft.rfnet.schema import ADWORLD, MapsConfig, RFNetDataConfig, RFNetObjectiveConfig
from rfft.training.pretrain.augment import augment
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.verdicts import (
    ATTRIBUTE_CLASSES,
    REGIONS,
    VariantScenes,
    attribute_loss,
    mixture,
    region_loss,
)
from rfft.types import LABELS

VALIDATION_SEED = 9  # of the scenes that every one of these networks is validated on


class ScenePictures:
    """Scenes of one split in all variants, as a source of labelled pictures (see FeedbackSource)."""

    def __init__(self, parts: Sequence[VariantScenes], shares: Sequence[float], augmented: bool) -> None:
        """Take the scenes of each variant; endless() draws from them by `shares`, `augmented` if that is
        so.
        """
        self.parts, self.shares, self.augmented = list(parts), shares, augmented
        labels = np.concatenate([part.scenes.label for part in parts])
        self.counts: list[int] = np.bincount(labels, minlength=len(LABELS)).tolist()

    def endless(self, reading: Reading, first: int, seed: int, mirror: bool) -> Iterator[dict[str, Any]]:
        """Yield this process's micro-batches from number `first` on: a function of seed and place alone."""
        draw = mixture(self.parts, reading.batch_size, self.shares, augment if self.augmented else None)
        for number in count(first):
            rng = np.random.default_rng([0, seed, number * reading.processes + reading.process])
            torch.manual_seed(int(rng.integers(2**62)))  # the augmentation draws from there
            yield vars(draw(rng))

    def once(self, reading: Reading) -> Iterator[dict[str, Any]]:
        """Yield this process's part of one round, in which every scene of every variant comes once."""
        batches = [
            (part, np.arange(start, min(start + reading.batch_size, len(part))))
            for part in self.parts
            for start in range(0, len(part), reading.batch_size)
        ]
        for part, index in batches[reading.process :: reading.processes]:
            yield vars(part.batch(index))


def open_scenes(
    data: RFNetDataConfig, tokenizer: Any, accelerator: Accelerator
) -> tuple[ScenePictures, ScenePictures]:
    """Return training and validation scenes; one process of a machine draws what its cache lacks."""
    scenes, bundle = data.scenes, find_bundle(data.scenes.bundle)
    train, validation = (name.removeprefix(ADWORLD) for name in (*data.train, *data.validation))
    with accelerator.local_main_process_first():
        training = [
            VariantScenes((train, getattr(scenes, variant), scenes.seed), variant, bundle, tokenizer)
            for variant in VARIANTS
        ]
        held_out = [
            VariantScenes((validation, scenes.validation, VALIDATION_SEED), variant, bundle, tokenizer)
            for variant in VARIANTS
        ]
    return ScenePictures(training, scenes.shares, scenes.augment), ScenePictures(
        held_out, scenes.shares, False
    )


def find_bundle(name: str) -> Path:
    """Return a generator's folder, or that of an embedded one; a UserError where there is none."""
    for folder in (Path(name), ASSETS / name):
        if (folder / "model_index.json").is_file():
            return folder
    raise UserError(
        f"data.scenes.bundle={name}: no folder with a model_index.json, nor an embedded generator"
    )


class SceneInputs:
    """Makes RFNet's arguments of a batch of scenes, with the maps that the networks see in them."""

    def __init__(self, maps: MapsConfig, drop: Sequence[str], accelerator: Accelerator) -> None:
        """Load the networks of the maps that are not dropped."""
        self.accelerator = accelerator
        self.networks: dict[str, nn.Module] = {
            kind: LOAD[kind](getattr(maps, kind)).to(accelerator.device)
            for modality, kind in KINDS.items()
            if modality not in drop
        }

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image = batch["image"]
        maps = dict.fromkeys(KINDS.values(), torch.zeros_like(image[:, :1]))
        with self.accelerator.autocast():
            maps |= {kind: network(image) for kind, network in self.networks.items()}
        return {name: batch[name] for name in ("image", "product", "caption_ids", "caption_mask")} | maps


class WithReaders(nn.Module):
    """RFNet with linear layers beside it that read the scene off its features; thrown away after training.

    To judge the product's size one must know what stands beside it and what the caption says of the product:
    learned far sooner when it is asked for. The attributes' reader sees e_f as well, as the caption's way to
    the verdict is so long that it was never learned. The regions' reader says of each token of the picture
    whether a prop, a grown part or clutter is there, as a person points at what is wrong.
    """

    def __init__(self, rfnet: RFNet) -> None:
        super().__init__()
        self.rfnet = rfnet
        self.read = nn.Linear(2 * rfnet.config.width, sum(ATTRIBUTE_CLASSES))
        self.find = nn.Linear(rfnet.config.width, len(REGIONS))

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B,K] of the verdict, of all attributes' classes side by side, and of the regions in
        each token of I_g [B,3,grid,grid].
        """
        encoded = self.rfnet.encode(**inputs)
        tokens = encoded[0]
        attended = self.rfnet.attend(*encoded)
        verdict = attended.mean(dim=1)
        product = tokens.get("o", verdict[:, None]).mean(dim=1)
        parts = dict(zip(tokens, attended.chunk(len(tokens), dim=1), strict=True))
        picture = parts["g"] if "g" in parts else next(iter(parts.values()))
        read = self.read(torch.cat([verdict, product], dim=1))
        return self.rfnet.head(verdict), read, to_map(self.find(picture))


def reading_loss(read: Sequence[Tensor], batch: dict[str, Any], objective: RFNetObjectiveConfig) -> Tensor:
    """Return the weighted losses of what is read off a batch's scenes: attributes, then regions."""
    attributes, regions = read
    named = attribute_loss(attributes.split(ATTRIBUTE_CLASSES, dim=1), batch["attributes"])
    return objective.attributes * named + objective.regions * region_loss(regions, batch["regions"])
