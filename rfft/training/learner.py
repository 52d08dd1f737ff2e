"""RFFT's training: all that changes while a generator is trained, and one micro-batch of it.

Every draw is a pure function of seed and position, so a checkpoint needs no generator's state, and neither a
resume nor the number of processes changes what comes next. B batch, N samples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfft import build
from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.data.encoded import AHEAD, EncodedSamples
from rfft.data.order import order_of
from rfft.data.sizes import as_size
from rfft.errors import UserError
from rfft.generation.sample import autocast
from rfft.models.bundle import Bundle
from rfft.objectives.base import Work
from rfft.rewards.availability import RFNetWithMaps
from rfft.rewards.weighted import WeightedRewards
from rfft.training import optimization
from rfft.training.distributed import Engine, Zero, uses_deepspeed, uses_fsdp
from rfft.training.ema import Ema
from rfft.training.fsdp import Fsdp
from rfft.training.method import check_gradient, dual_beta, trained_steps
from rfft.training.speed import Arithmetic
from rfft.training.step import Learner
from rfft.types import Batch, Reward, StepOutput, size_of
from rfft.utils.checkpoint import Stateful

log = logging.getLogger(__name__)
# Terms of the loss, by the names of their scalars.
TERMS = {"f_ac": "F_AC", "l_cc": "L_CC", "l_kl": "L_KL", "l_norm": "L_norm"}


@dataclass
class TrainingCounters(optimization.StepCounters):
    position: int = 0  # samples drawn: where in their order the next step begins
    grad_samples: int = 0  # pictures that a gradient came from
    forwards: int = 0  # batched calls of the denoiser


class RFFTLearner(Learner[StepOutput]):
    """A generator's trained weights, their optimizer and counters, and RFFT's micro-batch."""

    counters: TrainingCounters
    weights_name = "adapter"
    advice = (
        "In a new run (run.name), lower optimizer.lr or objective.beta, or set trainer.mixed_precision=no"
    )

    def __init__(
        self,
        config: Config,
        accelerator: Any,
        bundle: Bundle,
        reward: Reward,
        rfnet: RFNetWithMaps | None,
        conditions: EncodedSamples | Batch,
    ) -> None:
        """Take the objective's `reward`, and the RFNet that judges samples, if there is one.

        conditions: the samples, on the way or in memory.
        """
        super().__init__(accelerator)
        self.config, self.counters, trainer = config, TrainingCounters(), config.trainer
        self.bundle, self.reward, self.rfnet, self.conditions = bundle, reward, rfnet, conditions
        self.stopped = False  # at a guardrail; the same in all processes
        self.order = order_of(conditions, config.run.seed, trainer.batch_size)
        self.schedule = cache(partial(bundle.schedule, config.rollout.steps))  # by the pictures' size
        self.schedule(as_size(config.data.image_size))  # or it is refused
        self.objective, self.dual = build.build_objective(config), dual_beta(config)
        if isinstance(reward, WeightedRewards):
            check_gradient(config, self.objective, reward)
        rollout, optimizer, self.accumulation = config.rollout, config.optimizer, trainer.accumulation
        self.steps, self.max_minutes = trainer.steps, trainer.max_minutes
        self.passes, self.max_grad_norm = self.work.backwards, optimizer.max_grad_norm
        parts = trainer.accumulation * accelerator.num_processes  # micro-batches in all processes
        self.samples_per_step = trainer.batch_size * parts
        self.shared = rollout.shared_draw or accelerator.num_processes
        if parts % self.shared or self.shared % accelerator.num_processes:
            raise UserError(
                f"rollout.shared_draw={self.shared} must be a multiple of the {accelerator.num_processes} "
                f"processes and divide the {parts} micro-batches of an optimizer step"
            )
        self.trained_steps = trained_steps(config, parts // self.shared)
        self.arithmetic = Arithmetic(config, bundle)  # before the engine changes it
        adamw = optimization.adamw(bundle.trainable().values(), optimizer)
        self.lr_schedule = torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: min(1.0, (step + 1) / max(1, optimizer.warmup))
        )
        self.engine = self._engine(adamw)
        bundle.denoiser = self.engine.denoiser
        self.ema = Ema(bundle.adapter_state_dict(), config.ema.decay) if config.ema.enabled else None

    def _engine(self, adamw: torch.optim.AdamW) -> Engine:
        """Return DDP, ZeRO or FSDP2, as the launch file says; the config says the same to all of them."""
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

    def micro_batch(self, micro: int) -> StepOutput:
        """Compute one micro-batch: its gradients are added up, its output is detached."""
        batch = self.batch(micro).to(self.accelerator.device)
        ks = self.trained_steps(self.counters.step, micro * self.accelerator.num_processes // self.shared)
        self.flops = self.flops * bool(micro) + self.arithmetic.of_micro_batch(self.objective, ks)
        if self.dual is not None:
            self.objective.settings = replace(self.objective.settings, beta=self.dual.value)
        schedule = self.schedule(size_of(batch.product))
        with self.autocast():
            return self.objective.step(self.bundle, self.reward, batch, schedule, ks, self.backward)

    @property
    def work(self) -> Work:
        """What a micro-batch costs, counted at the last trained steps."""
        rollout = self.config.rollout
        return self.objective.work(rollout.steps, range(rollout.steps)[-rollout.grad_steps :])

    def backward(self, loss: Tensor) -> None:
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.engine.backward(loss)

    def autocast(self) -> torch.autocast:
        return autocast(self.accelerator.device, self.config.trainer.mixed_precision)

    def batch(self, micro: int) -> Batch:
        """Return this process's samples; their place in the order of all samples decides product and
        noise. What comes next is read meanwhile.
        """
        positions = self._positions(micro)
        chosen = self.conditions.index(self.order(positions.start))
        if isinstance(self.conditions, EncodedSamples):
            ahead = range(micro + 1, micro + 1 + AHEAD)  # beyond the step's last ones are those of the next
            self.conditions.prefetch(self.order(self._positions(later).start) for later in ahead)
        seed = self.config.run.seed
        return replace(chosen, noise=noise_for(seed, list(positions), tuple(chosen.x_o.shape[1:])))

    def _positions(self, micro: int) -> range:
        trainer, processes = self.config.trainer, self.accelerator.num_processes
        part = micro * processes + self.accelerator.process_index
        first = self.counters.position + part * trainer.batch_size
        return range(first, first + trainer.batch_size)

    def scalars(self, outputs: Sequence[StepOutput]) -> dict[str, Tensor]:
        """Return the means over this process's micro-batches."""
        found, regularizer = [], self.objective.settings.regularizer
        for output in outputs:
            reg = {} if regularizer is None else {regularizer.name: output.reg}
            found.append({"loss": output.loss} | reg | output.scalars)
        means = {name: torch.stack([named[name] for named in found]).mean() for name in found[0]}
        beta = {} if self.dual is None else {"beta": means["loss"].new_tensor(self.dual.value)}
        return means | beta

    def adapt(self, means: Mapping[str, float]) -> None:
        """Let beta follow the drift, where it is held."""
        if self.dual is not None and "drift" in means:
            self.dual.update(means["drift"])

    def details(self, outputs: Sequence[StepOutput]) -> dict[str, float]:
        """Return what was measured at each trained step k, as k30/reward, for those that were trained.

        The mean is over all micro-batches, of whichever process, that were trained there.
        """
        names = sorted({name for output in outputs for values in output.per_k.values() for name in values})
        if not names:
            return {}
        table = torch.zeros(self.config.rollout.steps, len(names) + 1, device=self.accelerator.device)
        for output in outputs:
            for k, values in output.per_k.items():
                table[k] += torch.stack(
                    [torch.ones_like(table[k, 0]), *(values[name].float() for name in names)]
                )
        summed = self.accelerator.reduce(table, "sum").tolist()
        return {
            f"k{k}/{name}": value / count
            for k, (count, *values) in enumerate(summed)
            if count
            for name, value in zip(names, values, strict=True)
        }

    def describe(self, scalars: Mapping[str, float]) -> str:
        """Return the terms of the loss, and RFNet's rate where it has one."""
        found = {name: scalars[f"train/{name}"] for name in TERMS if f"train/{name}" in scalars}
        terms = {TERMS[name]: value for name, value in found.items()}
        if "f_ac" not in found:
            terms = {"loss": scalars["train/loss"]} | terms
        parts = [f"{title} {value:.3f}" for title, value in terms.items()]
        if "train/available" in scalars:
            parts.append(f"available {scalars['train/available']:4.0%}")
        return "  ".join(parts)

    def data_seconds(self) -> float:
        conditions = self.conditions
        return conditions.waited + conditions.encoded if isinstance(conditions, EncodedSamples) else 0.0

    def count(self, outputs: Sequence[StepOutput]) -> None:
        """Count samples, pictures and denoiser calls of all processes."""
        counters, processes = self.counters, self.accelerator.num_processes
        counters.position += self.samples_per_step
        counters.grad_samples += processes * sum(output.pictures for output in outputs)
        counters.forwards += processes * sum(output.forwards for output in outputs)

    def finished(self) -> bool:
        """Return whether all steps are done, the time is over, or a guardrail has stopped the run."""
        return self.stopped or super().finished()

    # ---- state ----

    def trained_tensors(self) -> Mapping[str, Tensor]:
        return self.bundle.adapter_state_dict()

    def objects(self) -> dict[str, Stateful]:
        return super().objects() | ({} if self.dual is None else {"beta": self.dual})

    def load(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint; warn where steps are no longer made of as many samples."""
        super().load(checkpoint)
        done = self.counters
        if done.position != done.step * self.samples_per_step and self.accelerator.is_main_process:
            log.warning(
                "%d samples were drawn in %d steps, now it is %d a step; to keep their number, keep "
                "processes x trainer.accumulation x trainer.batch_size",
                *(done.position, done.step, self.samples_per_step),
            )
