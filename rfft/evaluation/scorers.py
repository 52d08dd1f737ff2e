"""Metrics for pictures of the real world: CLIP score, PickScore, FID, and how truly the product is shown.

Shapes: N products and prompts, S seeds, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rfft.evaluation import summary
from rfft.metrics.estimate import Estimate
from rfft.metrics.features import EfficientNetLite0, image_features
from rfft.metrics.fid import fid
from rfft.metrics.library import torchmetrics
from rfft.rewards.preference import TextMatch, picture_features

Space = Literal["efficientnet", "clip"]  # whose features FID compares


class Scorers:
    """CLIP score and PickScore, those that are wanted, and FID to held-out pictures."""

    def __init__(
        self,
        scorers: Mapping[str, TextMatch],
        space: Space | None,
        features: EfficientNetLite0,
        reference: Tensor | None,
        batch_size: int,
    ) -> None:
        """scorers: by the name of their metric; space: None for no FID; reference: [M,3,H,W]."""
        self.scorers, self.space, self.features, self.batch_size = scorers, space, features, batch_size
        if space is not None:
            torchmetrics("image.fid")  # missing? Say so before hours of painting.
        self.reference = None if space is None or reference is None else self._embed(reference)

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return every scorer's score [P] of pictures [P,3,H,W] and what each was asked to show."""
        size = self.batch_size
        found: dict[str, Tensor] = {}
        for name, scorer in self.scorers.items():
            device = next(scorer.parameters()).device
            parts = [
                scorer.score(images[i : i + size].to(device), list(prompts[i : i + size])).cpu()
                for i in range(0, len(images), size)
            ]
            found[name] = torch.cat(parts)
        return found

    def fid_metrics(self, images: Tensor) -> summary.Estimates:
        """Return FID of pictures [P,3,H,W], if it is wanted and they are enough for a covariance.

        It has no interval: it is biased by how few the pictures are, and resampled ones are fewer still.
        """
        if self.reference is None or len(images) < 2:
            return {}
        return {"fid": Estimate(fid(self._embed(images), self.reference), np.empty(0))}

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        if self.space == "efficientnet":
            return image_features(self.features, images, self.batch_size)
        clip = self.scorers["clip_score"].clip
        parts = images.split(self.batch_size)
        return torch.cat([picture_features(clip, part.to(clip.device)).cpu() for part in parts])


def score_metrics(scores: Mapping[str, Tensor], products: summary.Products) -> summary.Estimates:
    """Return the means of scores [N,S] by name."""
    found: summary.Estimates = {}
    for name, values in scores.items():
        found |= summary.mean_metrics(name, values, products)
    return found
