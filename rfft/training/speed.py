"""How much a run computes, where its time goes, and the fast copy that its rollouts run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rfft import build
from rfft.config.schema import Config
from rfft.data.sizes import as_size
from rfft.data.store import find_store
from rfft.errors import require
from rfft.models.bundle import Bundle
from rfft.models.fast import FastCopy, can_compile, keep_compiled
from rfft.models.load import skeleton_batch
from rfft.objectives.base import Objective, Work
from rfft.training.loop import Callback
from rfft.training.method import trained_steps
from rfft.types import Conditioning
from rfft.utils.estimate import Cost, FlopCounter

TRACE = "profile"  # in a run's folder
DRAWS = 1000
# So many forwards of a rollout earn the minute or two that compiling takes, on a CPU as on a GPU.
EARNED = 3000


class Arithmetic:
    """The generator's FLOPs, counted once, on the generator itself."""

    def __init__(self, config: Config, bundle: Bundle) -> None:
        """Run a guided forward of one picture, and the backward pass.

        Before the bundle is wrapped for several processes; no gradient is left behind.
        """
        self.cached = config.rollout.cache > 1
        size, self.steps = as_size(config.data.image_size), config.rollout.steps
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
        """Return the FLOPs of the generator in a micro-batch at the steps ks; 0: it leaves some out."""
        return 0.0 if self.cached else objective.work(self.steps, ks).flops(self.cost, objective.settings)


def works(config: Config) -> list[Work]:
    """Return what a micro-batch costs at each of many draws of the trained steps, the whole pool."""
    objective, draw = build.build_objective(config), trained_steps(config, strata=1)
    return [objective.work(config.rollout.steps, draw(step, 0)) for step in range(DRAWS)]


def mean_rollout(config: Config) -> float:
    """Return the forwards without gradient of a micro-batch, the mean over draws of the trained steps."""
    return sum(work.rollout for work in works(config)) / DRAWS


def compiles(config: Config, blocks: Sequence[str], device: torch.device) -> bool:
    """Return whether the fast copy is compiled; raises UserError where it should be and cannot."""
    rollout, trainer = config.rollout, config.trainer
    if rollout.compile == "never" or rollout.precision == "autocast":
        return False
    possible = bool(blocks) and can_compile(device)
    if rollout.compile == "always":
        require(
            possible,
            "rollout.compile=always: torch finds no compiler (g++, or Triton for GPUs): set it to auto",
        )
        return True
    return possible and trainer.steps * trainer.accumulation * mean_rollout(config) >= EARNED


def describe_rollouts(config: Config, blocks: Sequence[str]) -> str:
    """Say what the forwards without gradient run on."""
    rollout = config.rollout
    if rollout.precision == "autocast":
        return "on the trained networks, adapters merged (rollout.precision=autocast)"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = [f"on a copy in {rollout.precision}"]
    told.append("compiled" if compiles(config, blocks, device) else "not compiled")
    if rollout.cache > 1:
        told.append(f"of {rollout.cache} forwards in a row one is whole")
    return ", ".join(told)


def prepare_rollouts(config: Config, bundle: Bundle) -> None:
    """Give the bundle the fast copy that the config asks for; once the engine has the trained networks."""
    rollout, blocks = config.rollout, bundle.family.units
    if rollout.precision == "autocast":
        return
    dtype = torch.bfloat16 if rollout.precision == "bf16" else torch.float16
    bundle.fast = FastCopy(bundle.unwrapped, dtype, rollout.cache)
    if compiles(config, blocks, bundle.device):
        if (store := find_store(config.data.cache, config.data.cache_gb)) is not None:
            keep_compiled(store.folder.parent / "compiled")
        bundle.fast.compile(blocks)


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
