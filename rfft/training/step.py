"""ONE OPTIMIZER STEP of whatever is trained here, and the state that a checkpoint must hold.

RFFT (training/learner.py), RFNet (rfnet/learner.py) and the embedded world's networks
(training/pretrain/fit.py) say what a micro-batch is; averaging over micro-batches and processes, skipping,
counting and saving are the same for all of them.
"""

from __future__ import annotations

import math
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rfft.errors import Interrupted, UserError
from rfft.training.distributed import Engine
from rfft.training.ema import Ema
from rfft.training.optimization import StepCounters
from rfft.utils.checkpoint import Stateful, load_objects, load_weights
from rfft.utils.machine import arithmetic
from rfft.utils.signals import StopSignals

Output = TypeVar("Output")


class Learner(ABC, Generic[Output]):
    """All that changes while training, and one optimizer step of it.

    A subclass sets the attributes below after super().__init__() and defines micro_batch(), scalars(),
    describe() and trained_tensors().
    """

    engine: Engine
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    counters: StepCounters
    ema: Ema | None = None
    weights_name = "weights"  # of the file in a checkpoint
    passes = 1  # backward passes of a micro-batch
    accumulation = 1  # micro-batches of a step
    samples_per_step = 1  # of all processes
    max_grad_norm = 1.0
    steps = 0  # optimizer steps of the whole run
    max_minutes: float | None = None
    flops = 0.0  # of the generator's forwards and backwards in this step, in this process; 0: not counted
    advice = ""  # for a run whose gradients are not finite

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.signals = StopSignals()

    @abstractmethod
    def micro_batch(self, micro: int) -> Output:
        """Make one forward and its backward passes; this process's micro-batch number `micro` of the step."""

    @abstractmethod
    def scalars(self, outputs: Sequence[Output]) -> dict[str, Tensor]:
        """Return this process's scalars of a step, "loss" among them; they are averaged over all
        processes.
        """

    @abstractmethod
    def trained_tensors(self) -> Mapping[str, Tensor]:
        """Return the trained tensors themselves, not copies, by the names that a checkpoint has them
        under.
        """

    @abstractmethod
    def describe(self, scalars: Mapping[str, float]) -> str:
        """Return what the display shows of a step's scalars."""

    def details(self, outputs: Sequence[Output]) -> dict[str, float]:
        """Return more scalars, already averaged over all processes; called in all of them, for finite
        steps.
        """
        return {}

    def data_seconds(self) -> float:
        """Return for how long this process has waited for data so far, encoding them included."""
        return 0.0

    def adapt(self, means: Mapping[str, float]) -> None:
        """Change what follows from a finite step's scalars, means over all processes, the same in all."""

    def count(self, outputs: Sequence[Output]) -> None:
        """Count what a step has done beside itself."""

    def step(self) -> dict[str, float]:
        """Make one optimizer step and return its scalars, means over all processes.

        A step whose loss or gradient is not finite, in any process, is skipped in all: it leaves no trace in
        weights, moving average and buffers, and of its scalars only those that say so are returned. A step
        that is interrupted has not happened.
        """
        began, lr = time.monotonic(), float(self.lr_schedule.get_last_lr()[0])
        waited = self.data_seconds()
        buffers = [(buffer, buffer.clone()) for buffer in self.engine.buffers]
        try:
            outputs = self._micro_batches()
        except Interrupted:
            _restore(buffers)
            raise
        norm = self.engine.clip(self.max_grad_norm).detach()
        own = {name: value.detach() for name, value in self.scalars(outputs).items()}
        seconds = norm.new_tensor(time.monotonic() - began)
        means = self._means({"grad_norm": norm, "seconds": seconds, **own})

        finite = math.isfinite(means["loss"]) and math.isfinite(means["grad_norm"])
        if finite or self.accelerator.scaler is not None:  # the scaler skips by itself, and must be told
            self.engine.step()
        self.engine.zero_grad()
        self.lr_schedule.step()
        if not finite:  # batch norm would remember for ever what was no number
            _restore(buffers)
        else:
            self.adapt(means)
            if self.ema is not None:
                self.ema.update()
        self.counters.count(finite, means["seconds"])
        self.count(outputs)
        seconds_of_data = self.data_seconds() - waited
        named = self._named(means, self.details(outputs) if finite else {}, finite, lr)
        return named | {"perf/data_share": seconds_of_data / max(named["perf/step_seconds"], 1e-9)}

    def _micro_batches(self) -> list[Output]:
        self.engine.begin(self.accumulation * self.passes)
        outputs = []
        for micro in range(self.accumulation):
            if micro:
                self.raise_if_stopped()
            outputs.append(self.micro_batch(micro))
        return outputs

    def _means(self, own: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the scalars' means over all processes."""
        stacked = torch.stack([value.float().reshape(()) for value in own.values()])
        means = self.accelerator.reduce(stacked, "mean").tolist()
        return dict(zip(own, means, strict=True))

    def _named(
        self, means: dict[str, float], details: Mapping[str, float], finite: bool, lr: float
    ) -> dict[str, float]:
        """Return a step's scalars by the names that metrics.jsonl and trackers have them under."""
        seconds = means.pop("seconds")
        if not finite:  # what is said of pictures that are no numbers is of no use
            means = {name: means[name] for name in ("loss", "grad_norm")}
        named = {**means, **details, "lr": lr, "skipped": self.counters.skipped}
        speed = {
            "step_seconds": seconds,
            "images_per_second": self.samples_per_step / max(seconds, 1e-9),
            "memory_gib": peak_memory(self.accelerator.device) / 2**30,
            **arithmetic(self.flops / max(seconds, 1e-9), self.accelerator.device),
        }
        return {f"train/{name}": value for name, value in named.items()} | {
            f"perf/{name}": value for name, value in speed.items()
        }

    def raise_if_stopped(self) -> None:
        """Raise Interrupted, in all processes together, once any of them has received a signal to stop."""
        self.signals.raise_if_stopped(self.accelerator, self.counters.step)

    def finished(self) -> bool:
        """Return whether all steps are done or the time is over; the same in all processes."""
        late = self.counters.seconds >= 60 * (self.max_minutes or math.inf)
        return late or self.counters.step >= self.steps

    def check_skipped(self) -> None:
        """Raise a UserError where too much was skipped for the run to be of any use."""
        fp16 = self.accelerator.scaler is not None
        self.counters.check_skipped(self.finished(), fp16, self.advice)

    def due(self, *every: int) -> bool:
        """Return whether this step is one of every so many; 0 means never."""
        return any(each and self.counters.step % each == 0 for each in every)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model its moving average, if one is kept, for all processes together."""
        with nullcontext() if self.ema is None else self.ema.applied(), self.engine.whole():
            yield

    # ---- state ----

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights, whole in the first process; to be called in all processes."""
        self.engine.collect()
        found = {self.weights_name: self.engine.gather(self.trained_tensors())}
        if self.ema is not None:
            found["ema"] = self.engine.gather(self.ema.average)
        return found

    def objects(self) -> dict[str, Stateful]:
        """Return what else changes, by name; after weights()."""
        named: dict[str, Stateful] = {
            "counters": self.counters,
            "optimizer": self.engine,
            "lr_schedule": self.lr_schedule,
        }
        if self.ema is not None:
            named["ema"] = self.ema
        if self.accelerator.scaler is not None:
            named["scaler"] = self.accelerator.scaler
        return named

    @torch.no_grad()
    def load_weights(self, checkpoint: Path) -> None:
        """Take the trained weights and their average from a checkpoint."""
        own, saved = self.trained_tensors(), load_weights(checkpoint, self.weights_name)
        if {name: tensor.shape for name, tensor in own.items()} != {n: t.shape for n, t in saved.items()}:
            raise UserError(f"{checkpoint}: these weights are of another network than the one to be trained")
        for name, tensor in self.engine.split(saved, own).items():
            own[name].copy_(tensor)
        if self.ema is not None:
            self.ema.load(self.engine.split(load_weights(checkpoint, "ema"), own))

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint."""
        self.load_weights(checkpoint)
        load_objects(checkpoint, self.objects())


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has used so far: torch's on a GPU, resident ones elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _restore(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in buffers:
        buffer.copy_(before)
