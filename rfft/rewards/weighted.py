"""Several rewards as one: the weighted sum of their losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfft.types import Batch, Reward

REWARDS = {
    "pickscore": "rfft.rewards.people:load_pickscore",
    "aesthetic": "rfft.rewards.people:load_aesthetic",
    "image_reward": "rfft.rewards.image_reward:load_image_reward",
    "http": "rfft.rewards.http:HttpReward",
}


class WeightedRewards(nn.Module):
    """A frozen reward whose loss is the sum of weight * loss over its terms."""

    def __init__(self, terms: list[tuple[str, float, Reward]]) -> None:
        """Take, for each term, the prefix of its scalars' names ("" for none), its weight and the reward."""
        super().__init__()
        self.terms = terms
        self.networks = nn.ModuleList(reward for _, _, reward in terms if isinstance(reward, nn.Module))
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss per picture [B], and every reward's scalars."""
        total = image.new_zeros(len(image))
        scalars: dict[str, Tensor] = {}
        for prefix, weight, reward in self.terms:
            losses, found = reward(image, batch)
            total = total + weight * losses
            # Numbers, or tensors made on the CPU, cannot be stacked with the others.
            scalars |= {prefix + name: torch.as_tensor(value).to(total) for name, value in found.items()}
        return total, scalars


def is_differentiable(reward: Reward) -> bool:
    """Tell whether a reward's losses have a gradient in the pictures; they do unless it says otherwise."""
    return bool(getattr(reward, "differentiable", True))
