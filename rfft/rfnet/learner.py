"""All that changes while RFNet is trained, and one optimizer step of it.

Shapes: B batch, K classes. Every draw is a function of seed and position, as in rfft/training/learner.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfft.errors import UserError
from rfft.metrics.verdict import verdicts_of
from rfft.rewards.rfnet import RFNet
from rfft.rfnet.config import RFNetOptimizerConfig, RFNetTrainingConfig
from rfft.rfnet.data import network_inputs
from rfft.training import optimization
from rfft.utils.checkpoint import Stateful, load_objects, load_weights
from rfft.utils.signals import StopSignals

WEIGHTS = "rfnet"
DROPOUT = 3  # keeps these draws apart from others of the same seed


def class_weights(counts: Sequence[int]) -> Tensor:
    """[K], inverse to each class's share; 1 on average over the samples, 0 for a class without any."""
    found = torch.tensor(counts, dtype=torch.float64)
    present = found > 0
    return (found.sum() / (present.sum() * found.clamp(min=1)) * present).float()


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of weight * cross-entropy; logits [B,K], labels [B], weights [K].

    Not divided by the batch's own weights, so that the gradients of several batches average to that of one.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    return (weights[labels] * losses).mean()


def rate_factor(step: int, steps_per_epoch: int, settings: RFNetOptimizerConfig) -> float:
    """Of the learning rate: a linear warm-up, and drop_factor for every epoch of drop_at that is over."""
    drops = sum(step >= epoch * steps_per_epoch for epoch in settings.drop_at)
    return min(1.0, (step + 1) / max(1, settings.warmup)) * settings.drop_factor**drops


@dataclass
class RFNetCounters(optimization.StepCounters):
    pictures: int = 0
    best_ap: float = -1.0  # of "available" on the validation split
    best_step: int = 0
    worse_in_a_row: int = 0  # validations since
    validated: int = 0  # the last validation's step


class RFNetLearner:
    """All that changes while training, and the optimizer step."""

    def __init__(
        self,
        config: RFNetTrainingConfig,
        accelerator: Any,
        model: RFNet,
        tokenizer: Any,
        counts: Sequence[int],
    ) -> None:
        """`counts`: training pictures of each class."""
        self.config, self.accelerator, self.tokenizer = config, accelerator, tokenizer
        self.counters = RFNetCounters()
        self.signals = StopSignals()
        trainer, optimizer = config.trainer, config.optimizer
        balanced = config.objective.class_weights == "balanced"
        weights = class_weights(counts) if balanced else torch.ones(len(counts))
        self.class_weights = weights.to(accelerator.device)
        self.pictures_per_step = trainer.batch_size * trainer.accumulation * accelerator.num_processes
        self.steps_per_epoch = max(1, sum(counts) // self.pictures_per_step)
        self.rfnet = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        adamw = optimization.adamw(model.parameters(), optimizer)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: rate_factor(step, self.steps_per_epoch, optimizer)
        )
        self.model, self.optimizer = accelerator.prepare(model, adamw)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        trainer = self.config.trainer
        return min(trainer.epochs * self.steps_per_epoch, trainer.steps or 2**62)

    def step(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step; its scalars are means over all processes. Skipped without a finite gradient."""
        began = time.monotonic()
        lr, trainer = self.schedule.get_last_lr()[0], self.config.trainer
        buffers = [(buffer, buffer.clone()) for buffer in self.rfnet.buffers()]
        outputs = [self.micro_batch(next(batches), micro) for micro in range(trainer.accumulation)]
        norm = self.accelerator.clip_grad_norm_(self.rfnet.parameters(), self.config.optimizer.max_grad_norm)
        here = norm.new_tensor([time.monotonic() - began])
        scalars = torch.cat([torch.stack(outputs).mean(0), norm.detach().reshape(1), here])
        loss, accuracy, norm, seconds = self.accelerator.reduce(scalars, "mean").tolist()

        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite or self.accelerator.scaler is not None:  # the scaler skips by itself, and must be told
            self.optimizer.step()
        if not finite:
            for buffer, before in buffers:  # batch norm would remember what was no number for ever
                buffer.copy_(before)
        self.optimizer.zero_grad()
        self.schedule.step()
        counters = self.counters
        counters.count(finite, seconds)
        counters.pictures += self.pictures_per_step
        named = {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "lr": lr}
        named |= {"epoch": counters.step / self.steps_per_epoch, "skipped": counters.skipped}
        return {f"train/{name}": value for name, value in named.items()}

    def micro_batch(self, batch: dict[str, Any], micro: int) -> Tensor:
        """Forward and backward; loss and accuracy, detached."""
        device, counters = self.accelerator.device, self.counters
        place = [self.config.run.seed, counters.step, micro, self.accelerator.process_index, DROPOUT]
        torch.manual_seed(int(np.random.default_rng(place).integers(2**62)))
        inputs, labels = network_inputs(batch, self.tokenizer, device), batch["label"].to(device)
        smoothing = self.config.objective.label_smoothing
        with self.accelerator.accumulate(self.model), plain_attention(device):
            with self.accelerator.autocast():
                logits = self.model(**inputs)
            loss = weighted_loss(logits, labels, self.class_weights, smoothing)
            self.accelerator.backward(loss)
        accuracy = (verdicts_of(logits) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def heed(self) -> None:
        """A signal to stop, in all processes together: Interrupted."""
        self.signals.heed(self.accelerator, self.counters.step)

    def judged(self, ap: float) -> bool:
        """Take note of a validation's AP; is it the best so far?"""
        counters = self.counters
        counters.validated = counters.step
        best = ap > counters.best_ap
        if best:
            counters.best_ap, counters.best_step = ap, counters.step
        counters.worse_in_a_row = 0 if best else counters.worse_in_a_row + 1
        return best

    def finished(self) -> bool:
        """All steps done, the time over, or no better for too long? The same in all processes."""
        trainer, counters = self.config.trainer, self.counters
        late = counters.seconds >= 60 * (trainer.max_minutes or math.inf)
        stuck = 0 < trainer.patience <= counters.worse_in_a_row
        return late or stuck or counters.step >= self.steps

    # ---- state ----

    def weights(self) -> dict[str, dict[str, Tensor]]:
        return {WEIGHTS: self.rfnet.state_dict()}

    def objects(self) -> dict[str, Stateful]:
        named: dict[str, Stateful] = {
            "counters": self.counters,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        if self.accelerator.scaler is not None:
            named["scaler"] = self.accelerator.scaler
        return named

    def load(self, checkpoint: Path) -> None:
        self.rfnet.load_state_dict(load_weights(checkpoint, WEIGHTS))
        load_objects(checkpoint, self.objects())
        done = self.counters
        if done.pictures != done.step * self.pictures_per_step:
            raise UserError(
                f"{checkpoint} has seen {done.pictures / done.step:g} pictures a step, and now it would be "
                f"{self.pictures_per_step}, though learning rate and epochs go by steps: keep processes x "
                "trainer.accumulation x trainer.batch_size"
            )


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU fused attention's backward is many times slower."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
