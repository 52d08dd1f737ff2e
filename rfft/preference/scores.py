"""Aesthetics: a network that gives a picture the score that people give it, and names its defects.

B pictures, N of them in all, K defects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.metrics.classification import average_precision
from rfft.metrics.ranking import rank_correlation
from rfft.metrics.wilson import wilson_interval
from rfft.preference.losses import squared_emd
from rfft.preference.opinions import Opinions, Scored, read_scores
from rfft.preference.schema import AestheticTrainingConfig
from rfft.preference.task import Figures, Items, Look, Task
from rfft.rewards.encoders import load_halves, shapes
from rfft.rewards.opinion import SCORES, AestheticConfig, AestheticNetwork, Encoded, expected_score


class Scores(Task[Scored]):
    """Scored pictures: what share of people gave each score and named each defect."""

    name, chosen_by = "aesthetic", "spearman"

    def __init__(self, config: AestheticTrainingConfig) -> None:
        self.config, self.defects = config, list(config.aesthetic.defects)

    def read(self, path: Path) -> Opinions[Scored]:
        """Return the scored pictures of a file or store."""
        return read_scores(path)

    def build(self) -> AestheticNetwork:
        """Return the network on a pretrained encoder."""
        settings = self.config.network
        shape = AestheticConfig(shapes(settings.encoder)[0], self.defects, settings.width, settings.dropout)
        network = AestheticNetwork(shape)
        load_halves(settings.encoder, network.pictures, None)
        network.pictures.requires_grad_(settings.train == "all")
        return network

    def items(self, examples: Sequence[Scored], look: Look) -> Items:
        """Return pictures with people's shares."""

        def make(i: int) -> dict[str, Any]:
            scored = examples[i]
            scores = torch.tensor([scored.scores.count(k + 1) for k in range(SCORES)], dtype=torch.float)
            named = torch.tensor([float(sum(d in found for found in scored.defects)) for d in self.defects])
            count = len(scored.scores)
            return {"picture": look(scored.picture), "scores": scores / count, "defects": named / count}

        return Items(len(examples), make)

    def loss(self, forward: Callable[..., Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the loss of both tasks, and the share of pictures whose score is people's to the point."""
        scores, defects = forward(batch["picture"])
        loss = squared_emd(scores, batch["scores"]).mean()
        if self.defects:
            weight = self.config.aesthetic.defect_weight
            loss = loss + weight * F.binary_cross_entropy_with_logits(defects, batch["defects"])
        points = torch.arange(1.0, SCORES + 1, device=scores.device)
        equal = to_the_point(expected_score(scores)) == to_the_point(batch["scores"] @ points)
        return {"loss": loss, "accuracy": equal.float().mean()}

    def outputs(self, network: Encoded, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the machine's and people's scores, and probabilities and shares of the defects."""
        scores, defects = network(batch["picture"])
        points = torch.arange(1.0, SCORES + 1, device=scores.device)
        found = {"machine": expected_score(scores), "people": batch["scores"] @ points}
        found |= {"named": defects.sigmoid(), "defects": batch["defects"]}
        found["loss"] = squared_emd(scores, batch["scores"])
        return {name: value.double().cpu() for name, value in found.items()}

    def figures(self, found: Mapping[str, Tensor], tie: float | None = None) -> Figures:
        """Return how far scores agree, to the point and in their order, and AP of every defect."""
        machine, people = found["machine"], found["people"]
        away = (to_the_point(machine) - to_the_point(people)).abs()
        equal, count = int((away == 0).sum()), len(machine)
        defects = {}
        for k, name in enumerate(self.defects):
            positive = found["defects"][:, k].numpy() >= 0.5
            if positive.any():
                precision = average_precision(found["named"][:, k].numpy(), positive)
                defects[name] = {"pictures": int(positive.sum()), "ap": float(precision)}
        return {
            "pictures": count,
            "to_the_point": equal / count,
            "to_the_point_interval": list(wilson_interval(equal, count)),
            "within_one": float((away <= 1).double().mean()),
            "mean_error": float((machine - people).abs().mean()),
            "spearman": rank_correlation(machine.tolist(), people.tolist()),
            "loss": float(found["loss"].mean()),
            "always_the_usual_score": _usual(to_the_point(people).numpy()),
            "defects": defects,
        }

    def export(self, network: Encoded, figures: Figures, folder: Path) -> None:
        """Write what `aesthetic` as a reward or a metric takes."""
        network.save_pretrained(folder)


def to_the_point(scores: Tensor) -> Tensor:
    """Return scores as whole numbers; a half goes up."""
    return (scores + 0.5).floor()


def _usual(people: np.ndarray) -> float:
    """Return how often one is right who always gives the commonest score."""
    return float(np.unique(people, return_counts=True)[1].max() / len(people))
