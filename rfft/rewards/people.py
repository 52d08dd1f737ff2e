"""Rewards and metrics that people taught: what `rfft preference train` and `rfft aesthetic train` exported.

The published networks for the same two names, PickScore and LAION's aesthetic score, are in preference.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rfft.errors import UserError, require
from rfft.models.layers import ScoreReward
from rfft.models.pretrained import CONFIG_NAME, read_json, tokenizer_of
from rfft.rewards.opinion import AestheticNetwork, PreferenceNetwork, expected_score
from rfft.rewards.preference import Aesthetic, PickScore

PUBLISHED_CLIP = "openai/clip-vit-large-patch14"


class Preference(ScoreReward):
    """A preference network with its tokenizer, asked about one of its dimensions."""

    def __init__(self, network: PreferenceNetwork, tokenizer: Any, dimension: str | None = None) -> None:
        """`dimension`: its first one by default; raises UserError for one that it has not learned."""
        super().__init__()
        known = list(network.config.dimensions)
        self.network, self.tokenizer, self.dimension = network, tokenizer, dimension or known[0]
        require(self.dimension in known, f"dimension {dimension}: it has learned {', '.join(known)}")

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return the score [B] of pictures [B,3,H,W] and prompts, a logit: see metrics/ranking.py."""
        words = [self.network.config.dimensions[self.dimension]] * len(prompts)
        texts = [tokens_of(self.tokenizer, some, image.device) for some in (prompts, words)]
        return self.network(self.network.prepare(image), *texts)


class AestheticScore(ScoreReward):
    """An aesthetic network: the score from 1 to 5 that it expects of people."""

    def __init__(self, network: AestheticNetwork) -> None:
        super().__init__()
        self.network = network

    def score(self, image: Tensor, prompts: list[str]) -> Tensor:
        """Return the expected score [B] of pictures [B,3,H,W]; prompts do not matter."""
        return expected_score(self.network(self.network.prepare(image))[0])


def tokens_of(tokenizer: Any, texts: list[str], device: Any) -> tuple[Tensor, Tensor]:
    """Return ids and mask [B,L] of texts."""
    found = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device)
    return found.input_ids, found.attention_mask


def load_pickscore(model: str = "yuvalkirstain/PickScore_v1", dimension: str | None = None) -> ScoreReward:
    """Load PickScore, published or taught by `rfft preference train`: a folder, or a hub id.

    `dimension`: of a network that has learned several. Raises UserError for one that cannot be loaded.
    """
    if is_ours(model, PreferenceNetwork):
        return Preference(PreferenceNetwork.from_pretrained(model), tokenizer_of(model), dimension)
    require(dimension is None, f"{model} has no dimensions: leave `dimension` out")
    return PickScore(model)


def load_aesthetic(head: str | None = None, model: str = PUBLISHED_CLIP) -> ScoreReward:
    """Load an aesthetic score: RUN/aesthetic of `rfft aesthetic train`, or LAION's `head` on CLIP."""
    if is_ours(model, AestheticNetwork):
        require(head is None, f"{model} needs no head of LAION's: leave `head` out")
        return AestheticScore(AestheticNetwork.from_pretrained(model))
    if head is None:
        raise UserError(
            f"aesthetic: {model} is none that `rfft aesthetic train` wrote: name RUN/aesthetic as model, or "
            "the file of LAION's weights as head"
        )
    return Aesthetic(head, model)


def is_ours(model: str, kind: type) -> bool:
    """Tell whether a folder holds a network of this kind."""
    folder = Path(model)
    return (folder / CONFIG_NAME).is_file() and read_json(folder).get("architecture") == kind.__name__
