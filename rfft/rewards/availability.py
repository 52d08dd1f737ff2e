"""Availability: RFNet's verdict on pictures, as logits and as a reward.

Shapes: B pictures, H W pixels, K classes in the order of types.LABELS (or COARSE_LABELS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.metrics.verdict import verdicts_of
from rfft.rewards.rfnet import RFNet
from rfft.types import Batch, label_names


class RFNetWithMaps(nn.Module):
    """RFNet with the networks that make its depth and saliency maps and its tokenizer, all frozen."""

    def __init__(
        self, rfnet: RFNet, depth: nn.Module, saliency: nn.Module, tokenizer: Any, auxiliary_grad: bool = True
    ) -> None:
        """Take `depth` and `saliency` networks as rewards/maps.py loads them, and RFNet's own tokenizer.

        `auxiliary_grad`: does the gradient of the pictures pass through depth and saliency too?
        """
        super().__init__()
        self.rfnet, self.depth, self.saliency = rfnet, depth, saliency
        self.tokenizer, self.auxiliary_grad = tokenizer, auxiliary_grad
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, batch: Batch) -> Tensor:
        """Return logits [B,K] for pictures [B,3,H,W] in [0,1] of the batch's products."""
        return self.logits(image, batch.product, batch.captions)

    def logits(self, image: Tensor, product: Tensor, captions: list[str]) -> Tensor:
        """Return logits [B,K] for pictures [B,3,H,W] in [0,1] of RGBA products [B,4,H,W] and B captions."""
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(image.device), tokens.attention_mask.to(image.device)
        seen = image if self.auxiliary_grad else image.detach()
        maps = self.depth(seen), self.saliency(seen)
        return self.rfnet(image, product, *maps, ids, mask).float()


class Ensemble(nn.Module):
    """Several RFNets as one; harder to fool, as what deceives one need not deceive another."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Take networks that give logits [B,K] for pictures and their batch."""
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor, batch: Batch) -> Tensor:
        """Return the logarithm of the networks' mean probabilities [B,K]."""
        found = torch.stack([network(image, batch).log_softmax(dim=-1) for network in self.networks])
        return found.logsumexp(dim=0) - math.log(len(self.networks))


class Availability(nn.Module):
    """(5) F_AC, the reward that RFNet gives: its loss is the cross-entropy toward "available"."""

    def __init__(self, rfnet: nn.Module) -> None:
        """Take RFNetWithMaps, or whatever gives logits [B,K] for pictures and their batch."""
        super().__init__()
        self.rfnet = rfnet

    def forward(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return F_AC per picture [B]; its mean, and the share of pictures with each verdict, as scalars."""
        logits = self.rfnet(image, batch)
        losses = F.cross_entropy(
            logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device), reduction="none"
        )
        verdicts, names = verdicts_of(logits), label_names(logits.shape[-1])
        shares = {name: (verdicts == i).float().mean() for i, name in enumerate(names)}
        return losses, {"f_ac": losses.mean()} | shares
