"""A reward of one's own, in the form that docs/rewards.md describes."""

import torch
from torch import Tensor


class Darkness:
    """Likes pictures of a given brightness."""

    def __init__(self, wanted: float = 0.0) -> None:
        self.wanted = wanted

    def __call__(
        self, image: Tensor, captions: list[str], prompts: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss per picture [B], and scalars to be logged."""
        brightness = image.mean((1, 2, 3))
        letters = sum(len(text) for text in (*captions, *prompts)) / len(image)
        scalars = {"brightness": brightness.mean(), "letters": torch.tensor(letters)}
        return (brightness - self.wanted).square(), scalars
