"""How much a run computes, and where its time goes: FLOPs of the generator, and a profiler's trace.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rfft.config.schema import Config
from rfft.models.bundle import Bundle
from rfft.models.load import skeleton_batch
from rfft.objectives.base import Objective
from rfft.training.loop import Callback
from rfft.types import Conditioning
from rfft.utils.estimate import Cost, FlopCounter

TRACE = "profile"  # in a run's folder


class Arithmetic:
    """The generator's FLOPs, counted once, on the generator itself."""

    def __init__(self, config: Config, bundle: Bundle) -> None:
        """Run a guided forward of one picture, and the backward pass.

        Before the bundle is wrapped for several processes; no gradient is left behind.
        """
        size, self.steps = config.data.image_size, config.rollout.steps
        with bundle.device:
            batch = skeleton_batch(bundle, size, 1)
        x, level = torch.cat([batch.noise, batch.noise]), bundle.schedule(self.steps, size).level(0)
        both, edges = Conditioning.pair(batch.null, batch.z), torch.cat([batch.edges, batch.edges])
        trained = list(bundle.trainable().values())
        with FlopCounter() as forward:
            x0 = bundle.unwrapped(x, level, both, edges).x0
        with FlopCounter() as backward:
            torch.autograd.grad(x0.sum(), trained, allow_unused=True)
        self.cost = Cost(forward.total, backward.total, 0) * config.trainer.batch_size

    def of_micro_batch(self, objective: Objective, ks: Sequence[int]) -> float:
        """Return the FLOPs of the generator in a micro-batch trained at the steps ks."""
        return objective.work(self.steps, ks).flops(self.cost, objective.settings)


class Profile(Callback):
    """torch's profiler over some optimizer steps, from the second on: one trace for each process.

    RUN/profile/process-0.json.gz is read by chrome://tracing and ui.perfetto.dev, and the table beside it by
    people.
    """

    def __init__(self, run: Path, steps: int, rank: int) -> None:
        self.folder, self.rank = run / TRACE, rank
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        plan = schedule(wait=1, warmup=0, active=steps, repeat=1)
        self.profiler = profile(activities=kinds, schedule=plan, on_trace_ready=self._write)

    def on_start(self) -> None:
        self.profiler.start()

    def after_step(self, scalars: Mapping[str, float]) -> None:
        self.profiler.step()

    def on_stop(self) -> None:
        self.profiler.stop()

    def on_end(self) -> None:
        self.profiler.stop()

    def _write(self, traced: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        traced.export_chrome_trace(str(self.folder / f"process-{self.rank}.json.gz"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=order, row_limit=40)
        (self.folder / f"process-{self.rank}.txt").write_text(table, encoding="utf-8")
