"""A benchmark's runs: what trains and evaluates them, where they lie, and when they are done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from rfft.config.benchmark import BASE, Benchmark, GridConfig, Method, load_method
from rfft.config.load import flatten, to_yaml
from rfft.config.schema import Config
from rfft.errors import require
from rfft.evaluation.benchmark_report import Entry
from rfft.evaluation.store import SUMMARY, read_json
from rfft.training.costs import costs
from rfft.training.jobs import Job, Task, program

GRID = ("products", "count", "prompts_per_product", "seeds")  # settings of an evaluation's grid
RUNS = "runs"  # folder of the trainings; those of the evaluations are named as their grids
# What has no part in what the denoiser computes in an optimizer step.
FREE = ("run.", "optimizer.", "tracker.", "evaluate.", "ema.", "objective.beta", "objective.drift")


@dataclass(frozen=True)
class StepCost:
    """What the denoiser computes, in FLOPs."""

    step: float  # in an optimizer step
    forward: float  # in a guided forward for one picture


class StepCosts:
    """Counts what an optimizer step of a config costs; once for all configs that cost the same."""

    def __init__(self) -> None:
        self.known: dict[str, StepCost] = {}

    def __call__(self, config: Config) -> StepCost:
        settings = flatten(asdict(config))
        key = str({name: value for name, value in settings.items() if not name.startswith(FREE)})
        if key not in self.known:
            found = costs(config)
            self.known[key] = StepCost(found.denoiser, found.forward)
        return self.known[key]


def paid_steps(budget: float, step: float) -> int:
    """Return how many optimizer steps a budget pays, both in FLOPs; a UserError where it is none."""
    steps = math.floor(budget / step)
    require(
        steps >= 1,
        f"a step costs {step / 1e12:.3g} TFLOP, more than the budget of {budget / 1e12:g}: raise it",
    )
    return steps


@dataclass(frozen=True)
class Trial:
    """A method with one of its candidates and one seed; without training, the base model by its settings."""

    plan: Benchmark
    method: Method
    cost: StepCost
    number: int = 0  # of the candidate
    seed: int = 0

    @property
    def name(self) -> str:
        if not self.method.train:
            return self.method.name
        several = f"-{self.number}" if len(self.method.candidates) > 1 else ""
        return f"{self.method.name}{several}-seed{self.seed}"

    @property
    def run(self) -> Path:
        return self.plan.out / RUNS / self.name

    @cached_property
    def steps(self) -> int:
        return paid_steps(self.plan.budget, self.cost.step)

    @property
    def flops(self) -> float:
        """Of the denoiser in the training."""
        return self.steps * self.cost.step if self.method.train else 0.0

    @property
    def candidate(self) -> tuple[str, ...]:
        return self.method.candidates[self.number]

    def evaluation(self, grid: str) -> Path:
        """Return the folder of the evaluation on a grid, "val" or "test"."""
        return self.plan.out / grid / self.name

    def own(self) -> list[str]:
        """Return the settings that the benchmark itself gives to a training."""
        where = [f"run.name={self.name}", f"run.out={self.plan.out / RUNS}", f"run.seed={self.seed}"]
        return [*where, f"trainer.steps={self.steps}", "trainer.max_minutes=null", "evaluate.enabled=false"]

    def check(self) -> None:
        """Raise a UserError where the run is there with more steps than the plan pays."""
        done = read_json(self.run / SUMMARY).get("steps", 0) if self.method.train else 0
        require(
            done <= self.steps,
            f"{self.run} has made {done} steps, the plan pays {self.steps}: remove it, or take another --out",
        )

    def job(self, grid: str) -> Job:
        """Return what trains the method, if it is trained, and evaluates it on a grid."""
        if grid not in self._jobs:
            self._jobs[grid] = self._job(grid)
        return self._jobs[grid]

    @cached_property
    def _jobs(self) -> dict[str, Job]:
        return {}  # by grid: to read their configs takes a while

    def _job(self, grid: str) -> Job:
        tasks = (self._training(), self._evaluation(grid)) if self.method.train else (self._base(grid),)
        return Job(f"{grid}-{self.name}", tasks)

    def entry(self, grid: str) -> Entry | None:
        """Return the finished evaluation on a grid, if there is one."""
        if not self.job(grid).finished():
            return None
        run = self.run if self.method.train else None
        settings = (*self.method.settings, *self.candidate)
        seed = self.seed if self.method.train else None
        folder = self.evaluation(grid)
        return Entry(self.method.name, grid, folder, settings, run, seed, self.flops, self.method.curve)

    def _grid(self, grid: str) -> GridConfig:
        return self.plan.test if grid == "test" else self.plan.search

    def _training(self) -> Task:
        own = self.own()
        command = *program(), "train", str(self.plan.source), *self.method.settings, *self.candidate, *own
        return Task(command, partial(is_done, self.run, self.config(), "steps", self.steps), self.flops)

    def _evaluation(self, grid: str) -> Task:
        settings, folder = grid_settings(self._grid(grid)), self.evaluation(grid)
        base = self.plan.out / grid / BASE
        command = *program(), "evaluate", str(self.run), *settings, "--out", str(folder), "--base", str(base)
        return Task(command, partial(is_done, folder, self.config(grid), "tuned"), self._painting(grid))

    def _base(self, grid: str) -> Task:
        where = [f"run.name={self.name}", f"run.out={self.plan.out / grid}"]
        settings = [*grid_settings(self._grid(grid)), *where]
        command = *program(), "evaluate", str(self.plan.source), *self.method.settings, *settings
        done = partial(is_done, self.evaluation(grid), self.config(grid), "base")
        return Task(command, done, self._painting(grid))

    def _painting(self, grid: str) -> float:
        """Return the FLOPs of the denoiser in a grid's first pictures."""
        cells, config = self._grid(grid), self.config()
        pictures = cells.count * cells.prompts_per_product * cells.seeds
        return pictures * config.rollout.steps * self.cost.forward

    def config(self, grid: str = "") -> Config:
        """Return what the training's command reads to, or an evaluation's on a grid; reading takes longer."""
        config = deepcopy(load_method(self.plan.source, self.method, self.candidate))
        place = RUNS if self.method.train else grid
        config.run.name, config.run.out = self.name, str(self.plan.out / place)
        if self.method.train:
            config.run.seed, config.evaluate.enabled = self.seed, False
            config.trainer.steps, config.trainer.max_minutes = self.steps, None
        for name in GRID if grid else ():
            setattr(config.evaluate, name, getattr(self._grid(grid), name))
        return config


def grid_settings(grid: GridConfig) -> list[str]:
    """Return a grid as settings of an evaluation."""
    return [f"evaluate.{name}={getattr(grid, name)}" for name in GRID]


def is_done(folder: Path, config: Config, needed: str, steps: int = 0) -> bool:
    """Has a command come to its end in this folder with this very config? Its summary is written last.

    needed: what the summary must have; steps: those that a training makes.
    """
    file, summary = folder / "config.yaml", read_json(folder / SUMMARY)
    if needed not in summary or summary.get("steps", steps) < steps or not file.is_file():
        return False
    return file.read_text(encoding="utf-8") == to_yaml(config)


def trials_of(
    plan: Benchmark, method: Method, costs_of: StepCosts, number: int, seeds: Sequence[int]
) -> list[Trial]:
    """Return a method's trials with one candidate, a trial for each seed; one where nothing is trained."""
    config = load_method(plan.source, method, method.candidates[number])
    cost = costs_of(config)
    return [Trial(plan, method, cost, number, seed) for seed in (seeds if method.train else (0,))]
