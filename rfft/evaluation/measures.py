"""What is measured of each picture of a grid while it is there: afterwards it lies on disk.

Shapes: B pictures, P of the whole grid, H W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfft.evaluation.networks import Networks
from rfft.metrics.colour import colourfulness
from rfft.metrics.features import fill_product, image_features
from rfft.rewards.preference import TextMatch, picture_features
from rfft.rewards.probe import Probe

SHOWN, COLOUR, BACKGROUND, FEATURES, EMBEDDING = (
    "shown",
    "colourfulness",
    "background",
    "features",
    "embedding",
)
READ, SCORE, LOGITS = "read/", "score/", "logits/"  # one for each attribute, scorer, network

Values = dict[str, Tensor]  # [B,...] each, on the CPU


def named(values: Values, group: str) -> Values:
    """Return the values of a group, by what follows its name."""
    return {name.removeprefix(group): value for name, value in values.items() if name.startswith(group)}


def joined(parts: Sequence[Values]) -> Values:
    """Return the values of several batches, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Measures:
    """What measures finished pictures, beside the networks that judge them."""

    networks: Networks
    probe: Probe | None  # of AdWorld's pictures alone
    compares: bool  # with reference pictures
    fid_space: str | None

    @torch.no_grad()
    def __call__(self, images: Tensor, product: Tensor, prompts: Sequence[str]) -> Values:
        """Measure pictures [B,3,H,W] of products [B,4,H,W], by the prompts that they were to show.

        A picture that is not finite throughout is measured as if it were black where it is not, and is not
        SHOWN.
        """
        shown = images.isfinite().flatten(1).all(1)
        images, alpha = images.nan_to_num(0, 0, 0), product[:, 3:]
        found = dict(self._of_networks(images, product, prompts))
        found |= {SHOWN: shown, COLOUR: colourfulness(images, alpha)}
        found[BACKGROUND] = image_features(self.networks.features, fill_product(images, alpha))
        if self.compares:
            found[FEATURES] = image_features(self.networks.features, images)
        if self.fid_space is not None:
            found[EMBEDDING] = found[FEATURES] if self.fid_space == "efficientnet" else self.embed(images)
        return {name: value.cpu() for name, value in found.items()}

    def _of_networks(
        self, images: Tensor, product: Tensor, prompts: Sequence[str]
    ) -> Iterator[tuple[str, Tensor]]:
        if self.probe is not None:
            for attribute, logits in self.probe(images, product).items():
                yield READ + attribute, logits.argmax(-1)
        for name, scorer in self.networks.scorers.items():
            yield SCORE + name, scorer.score(images, list(prompts))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Return the features [B,D] that FID compares."""
        if self.fid_space == "efficientnet":
            return image_features(self.networks.features, images)
        scorer = self.networks.scorers["clip_score"]
        assert isinstance(scorer, TextMatch)
        return picture_features(scorer.clip, images.to(scorer.clip.device)).cpu()
