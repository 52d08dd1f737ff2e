"""The reward: RFNet with the networks that make its depth and saliency maps, all frozen."""

from __future__ import annotations

from torch import Tensor, nn

from rfft.rewards.rfnet import RFNet
from rfft.types import Batch


class RewardModel(nn.Module):
    """Logits [B,5] (in the order of LABELS) for pictures [B,3,H,W] in [0,1] of a batch's products."""

    def __init__(
        self, rfnet: RFNet, depth: nn.Module, saliency: nn.Module, auxiliary_grad: bool = True
    ) -> None:
        """`depth`, `saliency`: see rfft.models.auxiliary.

        `auxiliary_grad`: does the gradient of the pictures pass through depth and saliency too?
        """
        super().__init__()
        self.rfnet, self.depth, self.saliency = rfnet, depth, saliency
        self.auxiliary_grad = auxiliary_grad
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, batch: Batch) -> Tensor:
        seen = image if self.auxiliary_grad else image.detach()
        maps = self.depth(seen), self.saliency(seen)
        return self.rfnet(image, batch.product, *maps, batch.caption_ids, batch.caption_mask).float()
