"""What a benchmark would run and cost, counted before it runs: `rfft benchmark --plan-only`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from rfft import build
from rfft.config.benchmark import BASE, Benchmark, Method, load_method
from rfft.config.schema import Config
from rfft.data.sizes import as_size
from rfft.evaluation.store import SUMMARY, read_json
from rfft.generation.sample import autocast
from rfft.models.load import skeleton_batch
from rfft.training.benchmark import Study, facts
from rfft.training.jobs import Job
from rfft.training.trials import Trial
from rfft.types import Conditioning

TIMED = 3  # forwards


def describe(plan: Benchmark) -> Iterator[str]:
    """Yield lines for people: every method's runs, steps and cost, and what all of it takes here."""
    study = Study(plan)
    for name, value in facts(plan).items():
        yield f"{name}: {value}"
    yield ""
    line = "{:24} {:>10} {:>10} {:>10} {:>10}"
    yield line.format("method", "trainings", "steps", "TFLOP/step", "TFLOP")
    for method in plan.methods:
        yield line.format(method.name, *_sums(study, method))
    tasks = {task.command: task for job in jobs(study) for task in job.tasks}
    left = [task for task in tasks.values() if not task.done()]
    flops, (speed, told) = sum(task.size for task in left), pace(study)
    yield ""
    yield f"{len(tasks)} commands: {len(trainings(study))} trainings, the others evaluations"
    yield (
        f"{len(tasks) - len(left)} of them are finished; the others are {flops / 1e12:,.1f} TFLOP of the "
        f"denoiser, about {flops / speed / 3600:.1f} hours {told}"
    )


def _sums(study: Study, method: Method) -> tuple[object, ...]:
    """Return a method's trainings, steps of each, TFLOP of a step and of all."""
    trial, count = study.tested[method.name][0][0], len(trainings(study, method.name))
    if not count:
        return ("",) * 4
    step = trial.cost.step / 1e12
    return count, trial.steps, f"{step:.3f}", f"{count * trial.steps * step:.1f}"


def trainings(study: Study, method: str = "") -> set[str]:
    """Return the names of the trainings, of one method or of all; where settings are open, the first ones."""
    names = [method] if method else [m.name for m in study.plan.methods]
    found = [trial for name in names for trial in (*study.searched.get(name, []), *study.tested[name][0])]
    return {trial.name for trial in found if trial.method.train}


def jobs(study: Study) -> list[Job]:
    """Return all jobs; of a method whose settings are not chosen yet those of the first candidate."""
    base = [trial.job("val") for trial in study.base() if study.searched]
    searched = [trial.job("val") for trials in study.searched.values() for trial in trials]
    final = [study.final(m) or study.tested[m.name][0] for m in study.plan.methods]
    tested = [trial.job("test") for trials in final for trial in trials]
    return [*base, *searched, *tested]


def pace(study: Study) -> tuple[float, str]:
    """Return the denoiser's FLOPs in a second, and whence that is known."""
    done = [trial for trials in study.searched.values() for trial in trials]
    done += [trial for every in study.tested.values() for trials in every for trial in trials]
    found = [(trial, seconds) for trial in done if (seconds := seconds_of(trial))]
    if found:
        flops = sum(trial.steps * trial.cost.step for trial, _ in found)
        return flops / sum(seconds for _, seconds in found), "at the speed of the trainings that are finished"
    trial = study.tested[BASE][0][0]
    config = load_method(study.plan.source, trial.method, ())
    told = "at the speed of the denoiser's forward here, timed now: trainings are somewhat slower"
    return trial.cost.forward * config.trainer.batch_size / forward_seconds(config), told


def seconds_of(trial: Trial) -> float | None:
    """Return how long a finished training took."""
    summary = read_json(trial.run / SUMMARY) if trial.method.train else {}
    return summary.get("seconds") if summary.get("steps") == trial.steps else None


@torch.no_grad()
def forward_seconds(config: Config) -> float:
    """Time a guided forward of the denoiser for a micro-batch."""
    bundle = build.build_bundle(config, torch.accelerator.current_accelerator() or "cpu", trained=False)
    size = as_size(config.data.image_size)
    with bundle.device:
        batch = skeleton_batch(bundle, size, config.trainer.batch_size)
    level = bundle.schedule(config.rollout.steps, size).level(0)
    both, edges = Conditioning.pair(batch.null, batch.z), torch.cat([batch.edges, batch.edges])
    x = torch.cat([batch.noise, batch.noise])

    def forward() -> float:
        began = time.perf_counter()
        with autocast(bundle.device, config.trainer.mixed_precision):
            float(bundle.unwrapped(x, level, both, edges).x0.sum())  # waits for the device
        return time.perf_counter() - began

    return sorted(forward() for _ in range(1 + TIMED))[TIMED // 2]
