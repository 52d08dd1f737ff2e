"""Learning from labels that people gave: what the trainings of RFNet and of the networks of preference share.

They differ in the network, in a micro-batch's loss, and in what a validation measures.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rfft.config.schema import EmaConfig, RunConfig
from rfft.errors import UserError
from rfft.training import optimization
from rfft.training.distributed import Engine
from rfft.training.ema import Ema
from rfft.training.loop import Callback
from rfft.training.step import Learner

Batch = dict[str, Any]
DROPOUT = 3  # keeps these draws apart from others of the same seed


class OptimizerSettings(optimization.AdamWSettings, Protocol):
    schedule: Any  # drops or one_cycle
    drop_at: list[int]
    drop_factor: float
    warmup: int
    max_grad_norm: float


class TrainerSettings(Protocol):
    epochs: int
    steps: int | None
    max_minutes: float | None
    batch_size: int
    accumulation: int
    validate_every: int | None
    patience: int
    compile: bool


class Settings(Protocol):
    """What the configs of these trainings have in common here."""

    @property
    def run(self) -> RunConfig: ...

    @property
    def optimizer(self) -> OptimizerSettings: ...

    @property
    def trainer(self) -> TrainerSettings: ...

    @property
    def ema(self) -> EmaConfig: ...


def rate_factor(step: int, steps_per_epoch: int, settings: OptimizerSettings) -> float:
    """Of the learning rate: a linear warm-up, and drop_factor for every epoch of drop_at that is over."""
    drops = sum(step >= epoch * steps_per_epoch for epoch in settings.drop_at)
    return min(1.0, (step + 1) / max(1, settings.warmup)) * settings.drop_factor**drops


@dataclass
class SupervisedCounters(optimization.StepCounters):
    pictures: int = 0  # or whatever an example is
    best_score: float = -float("inf")  # on the validation data
    best_step: int = 0
    worse_in_a_row: int = 0  # validations since
    validated: int = 0  # the last validation's step


class SupervisedLearner(Learner[dict[str, Tensor]]):
    """A network's weights, their optimizer and counters; a subclass defines micro_batch()."""

    counters: SupervisedCounters
    advice = "In a new run (run.name), lower optimizer.lr or set trainer.mixed_precision=no"
    shown: ClassVar[dict[str, str]] = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.0%}"}
    shown_best = "best {:.1%}"  # of the best validation's score
    again = "in a new run"  # how to go on from a network whose schedule has ended

    def __init__(self, config: Settings, accelerator: Any, module: nn.Module, examples: int) -> None:
        """Prepare those weights of `module` that require a gradient for training on so many examples.

        This process's micro-batches, from the learner's step on, are to be set as `batches` before the first
        step.
        """
        super().__init__(accelerator)
        self.settings, self.counters = config, SupervisedCounters()
        self.batches: Iterator[Batch] = iter(())
        trainer, optimizer = config.trainer, config.optimizer
        self.accumulation, self.max_grad_norm = trainer.accumulation, optimizer.max_grad_norm
        self.samples_per_step = trainer.batch_size * trainer.accumulation * accelerator.num_processes
        self.steps_per_epoch = max(1, examples // self.samples_per_step)
        self.steps = min(trainer.epochs * self.steps_per_epoch, trainer.steps or 2**62)
        self.max_minutes = trainer.max_minutes
        module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        adamw = optimization.adamw(trained.values(), optimizer)
        self.lr_schedule = self._lr_schedule(adamw)
        self.engine = Engine(accelerator, module, adamw)
        self.forward = torch.compile(self.engine.model) if trainer.compile else self.engine.model
        frozen = {name for name, _ in module.named_parameters()} - trained.keys()
        self.tensors = {name: t for name, t in module.state_dict().items() if name not in frozen}
        self.ema = Ema(self.tensors, config.ema.decay) if config.ema.enabled else None

    def _lr_schedule(self, adamw: torch.optim.AdamW) -> torch.optim.lr_scheduler.LRScheduler:
        settings = self.settings.optimizer
        if settings.schedule == "one_cycle":
            share = min(
                (max(settings.warmup, 1) + 1) / (self.steps + 1), 1.0
            )  # the peak is after `warmup` steps
            return torch.optim.lr_scheduler.OneCycleLR(adamw, settings.lr, self.steps + 1, pct_start=share)
        return torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: rate_factor(step, self.steps_per_epoch, settings)
        )

    def seed_draws(self, micro: int) -> None:
        """Seed torch's draws in a micro-batch, by the run's seed and its place alone."""
        place = [self.counters.step, micro, self.accelerator.process_index, DROPOUT]
        torch.manual_seed(int(np.random.default_rng([self.settings.run.seed, *place]).integers(2**62)))

    def scalars(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the means over this process's micro-batches."""
        return {name: torch.stack([output[name] for output in outputs]).mean() for name in outputs[0]}

    def details(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Return how many epochs are done."""
        return {"epoch": self.counters.step / self.steps_per_epoch}

    def count(self, outputs: Sequence[dict[str, Tensor]]) -> None:
        """Count the examples of all processes."""
        self.counters.pictures += self.samples_per_step

    def describe(self, scalars: Mapping[str, float]) -> str:
        """Return loss, accuracy and the best validation's score so far."""
        known = {name: f"train/{name}" for name in self.shown}
        found = [self.shown[n].format(scalars[key]) for n, key in known.items() if key in scalars]
        best = self.counters.best_score
        return "  ".join(found + ([self.shown_best.format(best)] if best > -float("inf") else []))

    def note_validation(self, score: float) -> bool:
        """Take note of a validation's score, more is better; returns whether it is the best so far."""
        counters = self.counters
        counters.validated = counters.step
        best = score > counters.best_score
        if best:
            counters.best_score, counters.best_step = score, counters.step
        counters.worse_in_a_row = 0 if best else counters.worse_in_a_row + 1
        return best

    def finished(self) -> bool:
        """Return whether all steps are done, the time is over, or nothing got better for too long."""
        stuck = 0 < self.settings.trainer.patience <= self.counters.worse_in_a_row
        return stuck or super().finished()

    # ---- state ----

    def trained_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint whose steps were made of as many examples; else a UserError."""
        super().load(checkpoint)
        done, steps = self.counters, getattr(self.lr_schedule, "total_steps", self.steps + 1) - 1
        if steps != self.steps:
            raise UserError(
                f"{checkpoint}: the rate's one cycle ends at step {steps}, not {self.steps}: keep "
                f"trainer.steps and .epochs, or go on from this network {self.again}"
            )
        if done.pictures != done.step * self.samples_per_step:
            raise UserError(
                f"{checkpoint} has seen {done.pictures / done.step:g} pictures a step, and now it would be "
                f"{self.samples_per_step}, though learning rate and epochs go by steps: keep processes x "
                "trainer.accumulation x trainer.batch_size"
            )


class Validation(Callback):
    """Measures the network on validation data every so many steps; the best one is kept."""

    def __init__(self, learner: SupervisedLearner) -> None:
        self.learner = learner

    @abstractmethod
    def validate(self) -> None:
        """Measure, tell learner.note_validation(), and keep the network if it is the best yet."""

    def on_start(self) -> None:
        self.after_step({})  # a signal may have kept the run from it

    def after_step(self, scalars: Mapping[str, float]) -> None:
        """Validate, where it is this step's turn and not done yet; untrained weights are none to keep."""
        learner, counters = self.learner, self.learner.counters
        due = learner.due(learner.settings.trainer.validate_every or learner.steps_per_epoch)
        if counters.step > counters.validated and counters.trained and (due or learner.finished()):
            self.validate()
