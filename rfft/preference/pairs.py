"""Preferences: a network that says which of two pictures people like better for a prompt.

B pairs, N of them in all, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfft.metrics.preference import accuracy, best_tie
from rfft.metrics.ranking import rank_correlation
from rfft.models.pretrained import tokenizer_of
from rfft.preference.losses import frequency_weights, preference_loss
from rfft.preference.opinions import Opinions, Pair, read_pairs
from rfft.preference.schema import PreferenceTrainingConfig
from rfft.preference.task import Figures, Items, Look, Task
from rfft.rewards.encoders import EMBEDDED, TEXTS, load_halves, shapes
from rfft.rewards.opinion import Encoded, PreferenceConfig, PreferenceNetwork
from rfft.rewards.people import tokens_of


class Pairs(Task[Pair]):
    """Pairs of pictures, learned as PickScore does; in several dimensions as MPS does."""

    name, chosen_by = "preference", "accuracy"

    def __init__(self, config: PreferenceTrainingConfig) -> None:
        """Load the tokenizer of the encoder that the config names."""
        encoder = config.network.encoder
        self.config, self.dimensions = config, dict(config.preference.dimensions)
        self.tokenizer = tokenizer_of(TEXTS / "tokenizer" if encoder == EMBEDDED else encoder)

    def read(self, path: Path) -> Opinions[Pair]:
        """Return the pairs of a file or store in the dimensions to be learned."""
        return read_pairs(path, self.dimensions)

    def build(self) -> PreferenceNetwork:
        """Return the network on pretrained encoders."""
        settings, (pictures, texts) = self.config.network, shapes(self.config.network.encoder)
        shape = PreferenceConfig(
            pictures,
            texts,
            self.dimensions,
            settings.width,
            settings.heads,
            settings.layers,
            settings.dropout,
        )
        network = PreferenceNetwork(shape)
        load_halves(settings.encoder, network.pictures, network.texts)
        for half in (network.pictures, network.texts):
            half.requires_grad_(settings.train == "all")
        return network

    def items(self, examples: Sequence[Pair], look: Look) -> Items:
        """Return pairs with their weights."""
        weights = self._weights(examples)

        def make(i: int) -> dict[str, Any]:
            pair = examples[i]
            return {
                "first": look(pair.first),
                "second": look(pair.second),
                "prompt": pair.prompt,
                "dimension": list(self.dimensions).index(pair.dimension),
                "share": pair.share,
                "weight": weights[i],
            }

        return Items(len(examples), make)

    def _weights(self, examples: Sequence[Pair]) -> Tensor:
        by = self.config.preference.weights
        if by == "none":
            return torch.ones(len(examples))
        if by == "prompt":
            return frequency_weights([pair.prompt for pair in examples], [pair.prompt for pair in examples])
        return frequency_weights([pair.first for pair in examples], [pair.second for pair in examples])

    def _scores(self, forward: Callable[..., Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the scores [B] of the first and of the second pictures."""
        names = list(self.dimensions.values())
        words = [names[int(i)] for i in batch["dimension"]]
        device = batch["share"].device
        texts = [tokens_of(self.tokenizer, 2 * list(some), device) for some in (batch["prompt"], words)]
        scores = forward(torch.cat([batch["first"], batch["second"]]), *texts).float()
        first, second = scores.chunk(2)
        return first, second

    def loss(self, forward: Callable[..., Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the weighted loss, and how often the better one of two has the higher score."""
        first, second = self._scores(forward, batch)
        share = batch["share"].float()
        right = ((first - second) * (share - 0.5) > 0).float() + 0.5 * (share == 0.5)
        losses = preference_loss(first, second, share) * batch["weight"]
        return {"loss": losses.mean(), "accuracy": right.mean()}

    def outputs(self, network: Encoded, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the machine's probability that the first is better, and what people say."""
        first, second = self._scores(network, batch)
        found = {"first": torch.sigmoid(first - second), "share": batch["share"]}
        found |= {"dimension": batch["dimension"], "loss": preference_loss(first, second, batch["share"])}
        return {name: value.double().cpu() for name, value in found.items()}

    def figures(self, found: Mapping[str, Tensor], tie: float | None = None) -> Figures:
        """Return accuracy with ties, and Spearman's correlation with people's shares, in each dimension."""
        values = {name: value.numpy() for name, value in found.items()}
        tie = best_tie(values["first"], values["share"]) if tie is None else tie
        figures = {"pairs": len(values["share"]), "tie": tie, "loss": float(values["loss"].mean())}
        figures |= _agreement(values["first"], values["share"], tie)
        by_dimension = {}
        for number, name in enumerate(self.dimensions):
            own = values["dimension"] == number
            if own.any():
                by_dimension[name] = {"pairs": int(own.sum())}
                by_dimension[name] |= _agreement(values["first"][own], values["share"][own], tie)
        return figures | {"dimensions": by_dimension}

    def export(self, network: Encoded, figures: Figures, folder: Path) -> None:
        """Write what `pickscore` as a reward or a metric takes; the threshold of ties goes along."""
        learned, network.config = network.config, replace(network.config, tie=figures["tie"])
        network.save_pretrained(folder)
        network.config = learned
        self.tokenizer.save_pretrained(folder)


def _agreement(first: np.ndarray, share: np.ndarray, tie: float) -> Figures:
    """Return how far the machine's probabilities agree with people's shares; None where nothing is ranked."""
    decided = share != 0.5
    return {
        "accuracy": accuracy(first, share, tie),
        "accuracy_of_decided": accuracy(first[decided], share[decided], 0.0) if decided.any() else None,
        "always_a_tie": accuracy(np.full_like(share, 0.5), share, 1.0),  # what one gets who sees nothing else
        "spearman": rank_correlation(first.tolist(), share.tolist()),
        "ties": int((~decided).sum()),
    }
