"""All that changes while training: weights, optimizer, counters; and one optimizer step of it.

Every draw is a pure function of seed and position, so a checkpoint needs no generator's state, and neither a
resume nor the number of processes changes what comes next. B batch, N samples.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfft import build
from rfft.config.schema import Config
from rfft.data.conditions import noise_for, product_for
from rfft.errors import UserError
from rfft.generation.sample import autocast
from rfft.models.bundle import Bundle
from rfft.objectives.base import TrainedSteps, Work
from rfft.rewards.availability import RFNetWithMaps
from rfft.training import optimization
from rfft.training.distributed import Engine, Zero, uses_deepspeed, uses_fsdp
from rfft.training.ema import Ema
from rfft.training.fsdp import Fsdp
from rfft.types import Batch, Reward, StepOutput
from rfft.utils.checkpoint import Stateful, load_objects, load_weights
from rfft.utils.signals import StopSignals

log = logging.getLogger(__name__)


@dataclass
class TrainingCounters(optimization.StepCounters):
    position: int = 0  # samples drawn: where in their order the next step begins
    grad_samples: int = 0  # pictures that a gradient came from
    forwards: int = 0  # batched calls of the denoiser


class Learner:
    """All that changes while training, and the optimizer step."""

    def __init__(
        self,
        config: Config,
        accelerator: Any,
        bundle: Bundle,
        reward: Reward,
        rfnet: RFNetWithMaps | None,
        conditions: Batch,
    ) -> None:
        """Take the objective's `reward`, and the RFNet that judges samples, if there is one."""
        self.config, self.accelerator = config, accelerator
        self.bundle, self.reward, self.rfnet, self.conditions = bundle, reward, rfnet, conditions
        self.counters = TrainingCounters()
        self.stopped = False  # at a guardrail; the same in all processes
        self.signals = StopSignals()
        self.schedule = bundle.schedule(config.rollout.steps)
        self.objective = build.build_objective(config)
        rollout, optimizer = config.rollout, config.optimizer
        parts = config.trainer.accumulation * accelerator.num_processes  # micro-batches in all processes
        self.shared = rollout.shared_draw or accelerator.num_processes
        if parts % self.shared or self.shared % accelerator.num_processes:
            raise UserError(
                f"rollout.shared_draw={self.shared} must be a multiple of the {accelerator.num_processes} "
                f"processes and divide the {parts} micro-batches of an optimizer step"
            )
        strata = parts // self.shared
        self.trained_steps = TrainedSteps(
            config.run.seed, rollout.steps, rollout.last, rollout.grad_steps, strata
        )
        adamw = optimization.adamw(bundle.trainable().values(), optimizer)
        self.warmup = torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: min(1.0, (step + 1) / max(1, optimizer.warmup))
        )
        self.engine = self._engine(adamw)
        bundle.denoiser = self.engine.denoiser
        self.weights: dict[str, Mapping[str, Tensor]] = {}  # by collect()
        self.ema = Ema(bundle.adapter_state_dict(), config.ema.decay) if config.ema.enabled else None

    def _engine(self, adamw: torch.optim.AdamW) -> Engine:
        """DDP, ZeRO or FSDP2, by the launch file; what is for the config to say is the same for all."""
        several = self.accelerator.num_processes > 1
        if not (uses_deepspeed() or (uses_fsdp() and several)):
            return Engine(self.accelerator, self.bundle.unwrapped, adamw)
        if self.work.graphs > 1:  # several forwards for one backward pass
            raise UserError(
                f"objective.use={self.config.objective.use} is for DDP alone: take launch/multi_gpu.yaml"
            )
        if uses_fsdp():
            parts = [self.bundle.unwrapped, self.bundle.frozen_controlnet]
            units = self.bundle.family.units
            return Fsdp(self.accelerator, [part for part in parts if part is not None], units, adamw)
        trainer = self.config.trainer
        half = self.config.objective.precision == "bf16"
        settings = {
            "train_micro_batch_size_per_gpu": trainer.batch_size,
            "gradient_clipping": self.config.optimizer.max_grad_norm,
            "torch_autocast": {"enabled": half, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }
        return Zero(self.accelerator, self.bundle.unwrapped, adamw, settings)

    def step(self) -> dict[str, float]:
        """One optimizer step; its scalars are means over all processes. Skipped without a finite gradient.

        Interrupted between two micro-batches, it has not happened.
        """
        began = time.monotonic()
        lr = self.warmup.get_last_lr()[0]
        outputs = []
        self.engine.begin(self.config.trainer.accumulation * self.work.backwards)
        for micro in range(self.config.trainer.accumulation):
            outputs.append(self.micro_batch(micro))
            self.heed()
        norm = self.engine.clip(self.config.optimizer.max_grad_norm)
        own = [torch.stack([o.loss, o.reg, *o.scalars.values()]) for o in outputs]
        here = [time.monotonic() - began]
        scalars = torch.cat([norm.detach().reshape(1), norm.new_tensor(here), torch.stack(own).mean(0)])
        means = self.accelerator.reduce(scalars, "mean").tolist()
        norm, seconds, loss, reg, *rewards = means

        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite or self.accelerator.scaler is not None:  # the scaler skips by itself, and must be told
            self.engine.step()
        self.engine.zero_grad()
        self.warmup.step()
        if self.ema is not None:
            self.ema.update()
        self._count(outputs, finite, seconds)
        named = {"loss": loss, "grad_norm": norm, "lr": lr}
        if (regularizer := self.objective.settings.regularizer) is not None:
            named[regularizer.name] = reg
        named |= zip(outputs[0].scalars, rewards, strict=True)
        named["skipped"] = self.counters.skipped
        return {f"train/{name}": value for name, value in named.items()}

    def micro_batch(self, micro: int) -> StepOutput:
        """Compute one micro-batch: its gradients are added up, its output is detached."""
        batch = self.batch(micro).to(self.accelerator.device)
        ks = self.trained_steps(self.counters.step, micro * self.accelerator.num_processes // self.shared)
        with self.autocast():
            return self.objective.step(self.bundle, self.reward, batch, self.schedule, ks, self.backward)

    @property
    def work(self) -> Work:
        """What a micro-batch costs, counted at the last trained steps."""
        rollout = self.config.rollout
        return self.objective.work(rollout.steps, range(rollout.steps)[-rollout.grad_steps :])

    def heed(self) -> None:
        """A signal to stop, in all processes together: Interrupted."""
        self.signals.heed(self.accelerator, self.counters.step)

    def backward(self, loss: Tensor) -> None:
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.engine.backward(loss)

    def autocast(self) -> torch.autocast:
        return autocast(self.accelerator.device, self.config.trainer.mixed_precision)

    def batch(self, micro: int) -> Batch:
        """This process's samples: the place in the order of all samples decides product and noise."""
        trainer, processes = self.config.trainer, self.accelerator.num_processes
        part = micro * processes + self.accelerator.process_index
        first = self.counters.position + part * trainer.batch_size
        positions = range(first, first + trainer.batch_size)
        seed = self.config.run.seed
        chosen = self.conditions.index(
            [product_for(seed, position, len(self.conditions)) for position in positions]
        )
        return replace(chosen, noise=noise_for(seed, list(positions), tuple(chosen.x_o.shape[1:])))

    def _count(self, outputs: list[StepOutput], finite: bool, seconds: float) -> None:
        counters, processes = self.counters, self.accelerator.num_processes
        counters.count(finite, seconds)
        counters.position += self.samples_per_step
        counters.grad_samples += processes * sum(output.pictures for output in outputs)
        counters.forwards += processes * sum(output.forwards for output in outputs)

    @property
    def samples_per_step(self) -> int:
        """Of all processes."""
        trainer = self.config.trainer
        return trainer.batch_size * trainer.accumulation * self.accelerator.num_processes

    def finished(self) -> bool:
        """All steps done, the time over, or stopped at a guardrail? The same in all processes."""
        trainer, counters = self.config.trainer, self.counters
        late = counters.seconds >= 60 * (trainer.max_minutes or math.inf)
        return late or self.stopped or counters.step >= trainer.steps

    def to_be_saved(self) -> bool:
        """Does the main process save after this step? The same in all processes."""
        return self.finished() or self.due(self.config.trainer.checkpoint_every, self.config.evaluate.every)

    def to_be_shown(self) -> bool:
        """Does the main process look at the model after this step? The same in all processes."""
        return self.due(self.config.trainer.sample_every, self.config.evaluate.every)

    def due(self, *every: int) -> bool:
        """Is this step one of every so many? 0: never."""
        return any(each and self.counters.step % each == 0 for each in every)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model to look at, for all processes together: with its moving average, if one is kept."""
        with nullcontext() if self.ema is None else self.ema.applied(), self.engine.whole():
            yield

    # ---- state ----

    def collect(self) -> None:
        """To be called in all processes before the first one asks for `weights` and objects()."""
        self.engine.collect()
        self.weights = {"adapter": self.engine.gather(self.bundle.adapter_state_dict())}
        if self.ema is not None:
            self.weights["ema"] = self.engine.gather(self.ema.average)

    def objects(self) -> dict[str, Stateful]:
        named: dict[str, Stateful] = {
            "counters": self.counters,
            "optimizer": self.engine,
            "warmup": self.warmup,
        }
        if self.accelerator.scaler is not None:
            named["scaler"] = self.accelerator.scaler
        return named

    def load_weights(self, checkpoint: Path) -> None:
        own = self.bundle.adapter_state_dict()
        self.bundle.load_adapter_state_dict(self.engine.split(load_weights(checkpoint, "adapter"), own))
        if self.ema is not None:
            self.ema.load(self.engine.split(load_weights(checkpoint, "ema"), own))

    def load(self, checkpoint: Path) -> None:
        """All of it."""
        self.load_weights(checkpoint)
        load_objects(checkpoint, self.objects())
        self.collect()
        done = self.counters
        if done.position != done.step * self.samples_per_step and self.accelerator.is_main_process:
            log.warning(
                "%d samples were drawn in %d steps, now it is %d a step; to keep their number, keep "
                "processes x trainer.accumulation x trainer.batch_size",
                *(done.position, done.step, self.samples_per_step),
            )
