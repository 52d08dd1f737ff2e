"""AdWorld as a data set of samples: a product on its canvas and a prompt that could be met."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rfft.adworld import assets, draw, grammar
from rfft.adworld.assets import Image8
from rfft.adworld.scene import SIZE, draw_attributes, place_icon
from rfft.data.samples import Sample, Selection
from rfft.data.splits import SPLITS, parse_source
from rfft.errors import UserError, require

COUNT = 500  # products, unless a selection says how many: it could draw forever
MOST = 50_000  # pairs of product and prompt: half a minute, and 3 GB
REFERENCE_SEED, REFERENCE_IMAGES = 418, 128
_SPLIT_KEY = {"train": 0, "val": 1, "test": 2}


class AdWorldProducts:
    """Products of a split of AdWorld, each on one canvas with one prompt of its grammar or more."""

    def __init__(self, source: str, selection: Selection) -> None:
        """Draw what `source` (adworld:SPLIT) and the selection ask for."""
        split, size = adworld_split(source), selection.framing.size
        require(size == SIZE, f"{source}: AdWorld is {SIZE} px wide; set data.image_size={SIZE}")
        require(
            selection.holdout is None,
            f"{source}: AdWorld has splits of its own; set data.holdout=null",
        )
        count, turns = selection.count or COUNT, selection.prompts_per_product
        require(
            count * turns <= MOST,
            f"{source}: {count:,} products with {turns:,} prompts each; AdWorld draws {MOST:,} of such pairs "
            "at most: lower data.count (evaluate.count)",
        )
        self.samples = draw_samples(split, count, turns, selection.seed)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def adworld_split(source: str) -> str:
    """Return the SPLIT of adworld:SPLIT; raises UserError if there is no such split."""
    name, split = parse_source(source)
    if name != "adworld" or split is None:
        raise UserError(f"{source}: no such split; give {', '.join(f'adworld:{name}' for name in SPLITS)}")
    return split


def draw_samples(split: str, products: int, prompts_per_product: int, seed: int) -> list[Sample]:
    """Draw products of a split with prompts; the same for the same arguments."""
    rng = np.random.default_rng([seed, _SPLIT_KEY[split], 418])
    icons = assets.products(split)
    order = [i for _ in range(-(-products // len(icons))) for i in rng.permutation(len(icons))][:products]
    samples = []
    for number, chosen in enumerate(order):
        icon = icons[chosen]
        cutout = place_icon(icon, rng)
        drawn_height = int((cutout[..., 3].max(axis=1) > 0).sum())
        canvas = _canvas(cutout)
        for turn in range(prompts_per_product):
            attributes = draw_attributes(icon, drawn_height, rng)
            samples.append(
                Sample(
                    id=f"{number:04d}-{icon.id}-{turn}",
                    canvas=canvas,
                    caption=grammar.caption(icon.name, icon.height_cm),
                    prompt=grammar.prompt(icon.name, icon.height_cm, attributes, rng),
                    attributes=attributes,
                    product=icon.id,
                )
            )
    return samples


def _canvas(cutout: Image8) -> Tensor:
    """Turn pixels uint8 [S,S,4] into a canvas, float [4,S,S] in [0,1]."""
    return torch.from_numpy(cutout).permute(2, 0, 1).float().div(255).contiguous()


def reference_images(source: str) -> Tensor:
    """Return available pictures uint8 [REFERENCE_IMAGES,3,S,S] of a split: what good pictures look like."""
    split = adworld_split(source)
    scenes = [draw.scene(REFERENCE_SEED, i, split, "available").image for i in range(REFERENCE_IMAGES)]
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)
