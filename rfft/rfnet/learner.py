"""RFNet's training: all that changes while it is trained, and one micro-batch of it.

Shapes: B batch, K classes. Every draw is a function of seed and position, as in rfft/training/learner.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.feedback.dataset import targets_of
from rfft.metrics.verdict import verdicts_of
from rfft.rewards.rfnet import RFNet
from rfft.rfnet.scenes import WithReaders, reading_loss
from rfft.rfnet.schema import RFNetTrainingConfig
from rfft.training import optimization
from rfft.training.pretrain.verdicts import perturbed
from rfft.training.supervised import Batch, SupervisedLearner


def class_weights(counts: Sequence[int]) -> Tensor:
    """[K], inverse to each class's share; 1 on average over the samples, 0 for a class without any."""
    found = torch.tensor(counts, dtype=torch.float64)
    present = found > 0
    return (found.sum() / (present.sum() * found.clamp(min=1)) * present).float()


def weighted_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    of_picture: Tensor | float = 1.0,
) -> Tensor:
    """Mean over the batch of weight * cross-entropy.

    logits [B,K]; targets: labels [B], or each class's share [B,K]; weights [K] of the classes, and
    `of_picture` [B]. Not divided by the batch's own weights, so that the gradients of several batches average
    to that of one.
    """
    shares = F.one_hot(targets, logits.shape[1]).float() if targets.ndim == 1 else targets
    losses = F.cross_entropy(logits.float(), shares, reduction="none", label_smoothing=smoothing)
    return (of_picture * (shares @ weights) * losses).mean()


def reads_scenes(config: RFNetTrainingConfig) -> bool:
    """Return whether attributes or regions of the scenes are read off the network beside the verdict."""
    return bool(config.objective.attributes or config.objective.regions)


class RFNetLearner(SupervisedLearner):
    """RFNet's weights, their optimizer and counters, and a micro-batch of labelled pictures."""

    weights_name = "rfnet"
    shown_best = "best AP {:.1%}"
    again = "in a new run, with rfnet.init"

    def __init__(
        self,
        config: RFNetTrainingConfig,
        accelerator: Any,
        model: RFNet,
        inputs: Callable[[Batch], dict[str, Tensor]],
        counts: Sequence[int],
    ) -> None:
        """Prepare `model` for training.

        `inputs` makes the network's arguments of a batch; `counts`: training pictures of each class.
        """
        module = WithReaders(model) if reads_scenes(config) else model
        super().__init__(config, accelerator, module, sum(counts))
        self.config, self.inputs, self.rfnet = config, inputs, model
        balanced = config.objective.class_weights == "balanced"
        weights = class_weights(counts) if balanced else torch.ones(len(counts))
        self.class_weights = weights.to(accelerator.device)

    def micro_batch(self, micro: int) -> dict[str, Tensor]:
        """Make forward and backward pass; returns loss and accuracy."""
        device, batch = self.accelerator.device, next(self.batches)
        self.seed_draws(micro)
        objective, labels = self.config.objective, batch["label"].to(device)
        if objective.perturbation:
            batch = batch | {"image": self._perturbed(batch, labels)}
        inputs = self.inputs(batch)
        with optimization.plain_attention(device):
            with self.accelerator.autocast():
                output = self.forward(**inputs)
            logits, *read = output if isinstance(output, tuple) else (output,)
            targets, of_picture = self._wanted(batch, logits.shape[1])
            smoothing = objective.label_smoothing
            loss = weighted_loss(logits, targets, self.class_weights, smoothing, of_picture)
            if read:
                loss = loss + reading_loss(read, batch, objective)
            self.engine.backward(loss)
        return {"loss": loss.detach(), "accuracy": (verdicts_of(logits) == labels).float().mean()}

    def _wanted(self, batch: Batch, classes: int) -> tuple[Tensor, Tensor | float]:
        """Return each class's share [B,K] in what people said, and the pictures' weights [B] or 1."""
        weight = batch.get("weight") if self.config.objective.agreement else None
        device = self.accelerator.device
        return targets_of(batch, classes).to(device), 1.0 if weight is None else weight.to(device)

    def _perturbed(self, batch: Batch, labels: Tensor) -> Tensor:
        """Return the batch's pictures, half of them moved against their labels; the maps stay meanwhile."""
        inputs = {name: value[: len(labels) // 2] for name, value in self.inputs(batch).items()}

        def logits_of(image: Tensor) -> Tensor:
            with self.accelerator.autocast():
                return self.rfnet(**inputs | {"image": image})

        return perturbed(batch["image"], labels, logits_of, self.config.objective.perturbation)
