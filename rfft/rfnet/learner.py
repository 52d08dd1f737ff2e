"""RFNet's training: all that changes while it is trained, and one micro-batch of it.

Shapes: B batch, K classes. Every draw is a function of seed and position, as in rfft/training/learner.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.errors import UserError
from rfft.feedback.dataset import targets_of
from rfft.metrics.verdict import verdicts_of
from rfft.rewards.rfnet import RFNet
from rfft.rfnet.scenes import WithReaders, reading_loss
from rfft.rfnet.schema import RFNetOptimizerConfig, RFNetTrainingConfig
from rfft.training import optimization
from rfft.training.distributed import Engine
from rfft.training.ema import Ema
from rfft.training.pretrain.verdicts import perturbed
from rfft.training.step import Learner

Batch = dict[str, Any]
DROPOUT = 3  # keeps these draws apart from others of the same seed


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


def rate_factor(step: int, steps_per_epoch: int, settings: RFNetOptimizerConfig) -> float:
    """Of the learning rate: a linear warm-up, and drop_factor for every epoch of drop_at that is over."""
    drops = sum(step >= epoch * steps_per_epoch for epoch in settings.drop_at)
    return min(1.0, (step + 1) / max(1, settings.warmup)) * settings.drop_factor**drops


def reads_scenes(config: RFNetTrainingConfig) -> bool:
    """Return whether attributes or regions of the scenes are read off the network beside the verdict."""
    return bool(config.objective.attributes or config.objective.regions)


@dataclass
class RFNetCounters(optimization.StepCounters):
    pictures: int = 0
    best_ap: float = -1.0  # of "available" on the validation split
    best_step: int = 0
    worse_in_a_row: int = 0  # validations since
    validated: int = 0  # the last validation's step


class RFNetLearner(Learner[dict[str, Tensor]]):
    """RFNet's weights, their optimizer and counters, and a micro-batch of labelled pictures."""

    counters: RFNetCounters
    weights_name = "rfnet"
    advice = "In a new run (run.name), lower optimizer.lr or set trainer.mixed_precision=no"

    def __init__(
        self,
        config: RFNetTrainingConfig,
        accelerator: Any,
        model: RFNet,
        inputs: Callable[[Batch], dict[str, Tensor]],
        counts: Sequence[int],
    ) -> None:
        """Prepare `model` for training.

        `inputs` makes the network's arguments of a batch; `counts`: training pictures of each class. This
        process's micro-batches, from the learner's step on, are to be set as `batches` before the first step.
        """
        super().__init__(accelerator)
        self.config, self.inputs = config, inputs
        self.batches: Iterator[Batch] = iter(())
        self.counters = RFNetCounters()
        trainer, optimizer = config.trainer, config.optimizer
        balanced = config.objective.class_weights == "balanced"
        weights = class_weights(counts) if balanced else torch.ones(len(counts))
        self.class_weights = weights.to(accelerator.device)
        self.accumulation, self.max_grad_norm = trainer.accumulation, optimizer.max_grad_norm
        self.samples_per_step = trainer.batch_size * trainer.accumulation * accelerator.num_processes
        self.steps_per_epoch = max(1, sum(counts) // self.samples_per_step)
        self.steps = min(trainer.epochs * self.steps_per_epoch, trainer.steps or 2**62)
        self.max_minutes = trainer.max_minutes
        self.rfnet = model
        module: nn.Module = WithReaders(model) if reads_scenes(config) else model
        module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        adamw = optimization.adamw(module.parameters(), optimizer)
        self.lr_schedule = self._lr_schedule(adamw)
        self.engine = Engine(accelerator, module, adamw)
        self.forward = torch.compile(self.engine.model) if trainer.compile else self.engine.model
        self.tensors = module.state_dict()
        self.ema = Ema(self.tensors, config.ema.decay) if config.ema.enabled else None

    def _lr_schedule(self, adamw: torch.optim.AdamW) -> torch.optim.lr_scheduler.LRScheduler:
        settings = self.config.optimizer
        if settings.schedule == "one_cycle":
            share = min(
                (max(settings.warmup, 1) + 1) / (self.steps + 1), 1.0
            )  # the peak is after `warmup` steps
            return torch.optim.lr_scheduler.OneCycleLR(adamw, settings.lr, self.steps + 1, pct_start=share)
        return torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: rate_factor(step, self.steps_per_epoch, settings)
        )

    def micro_batch(self, micro: int) -> dict[str, Tensor]:
        """Make forward and backward pass; returns loss and accuracy."""
        device, counters, batch = self.accelerator.device, self.counters, next(self.batches)
        draw = [self.config.run.seed, counters.step, micro, self.accelerator.process_index, DROPOUT]
        torch.manual_seed(int(np.random.default_rng(draw).integers(2**62)))
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

    def scalars(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the means over this process's micro-batches."""
        return {name: torch.stack([output[name] for output in outputs]).mean() for name in outputs[0]}

    def details(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Return how many epochs are done."""
        return {"epoch": self.counters.step / self.steps_per_epoch}

    def count(self, outputs: Sequence[dict[str, Tensor]]) -> None:
        """Count the pictures of all processes."""
        self.counters.pictures += self.samples_per_step

    def describe(self, scalars: Mapping[str, float]) -> str:
        """Return loss, accuracy and the best validation's AP so far."""
        shown = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.0%}"}
        found = [text.format(scalars[f"train/{n}"]) for n, text in shown.items() if f"train/{n}" in scalars]
        best = self.counters.best_ap
        return "  ".join(found + ([f"best AP {best:.1%}"] if best >= 0 else []))

    def note_validation(self, ap: float) -> bool:
        """Take note of a validation's AP; returns whether it is the best so far."""
        counters = self.counters
        counters.validated = counters.step
        best = ap > counters.best_ap
        if best:
            counters.best_ap, counters.best_step = ap, counters.step
        counters.worse_in_a_row = 0 if best else counters.worse_in_a_row + 1
        return best

    def finished(self) -> bool:
        """Return whether all steps are done, the time is over, or nothing got better for too long."""
        stuck = 0 < self.config.trainer.patience <= self.counters.worse_in_a_row
        return stuck or super().finished()

    # ---- state ----

    def trained_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint whose steps were made of as many pictures; else a UserError."""
        super().load(checkpoint)
        done, steps = self.counters, getattr(self.lr_schedule, "total_steps", self.steps + 1) - 1
        if steps != self.steps:
            raise UserError(
                f"{checkpoint}: the rate's one cycle ends at step {steps}, not {self.steps}: keep "
                "trainer.steps and .epochs, or go on from this network in a new run, with rfnet.init"
            )
        if done.pictures != done.step * self.samples_per_step:
            raise UserError(
                f"{checkpoint} has seen {done.pictures / done.step:g} pictures a step, and now it would be "
                f"{self.samples_per_step}, though learning rate and epochs go by steps: keep processes x "
                "trainer.accumulation x trainer.batch_size"
            )
