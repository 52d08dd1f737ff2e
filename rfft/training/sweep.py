"""`rfft sweep`: the runs of a plan, each a process of the real command line, and their comparison."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from functools import partial

from rfft.config.load import to_yaml
from rfft.config.sweep import Plan, PlannedRun
from rfft.errors import Interrupted, UserError
from rfft.evaluation.compare import compare
from rfft.evaluation.store import SUMMARY, read_json
from rfft.training.jobs import Failure, Job, Jobs, Task, environment, program
from rfft.utils.log import messages
from rfft.utils.signals import StopSignals


def sweep(plan: Plan, jobs: int = 1, launcher: str = "") -> list[Failure]:
    """Run what is not finished, `jobs` at a time, and compare all runs that are; return those that failed.

    `launcher` is put before the command line, as in "accelerate launch --config_file launch/multi_gpu.yaml".
    The table and the figure lie in the plan's folder. Raises Interrupted after a signal, once all has ended.
    """
    console, words = messages(), launcher_program(launcher)
    planned = [
        Job(run.name, (Task(tuple(command_line(run, words)), partial(is_finished, run)),))
        for run in plan.runs
    ]
    work = Jobs(plan.name, planned, plan.out, jobs)
    done = len(planned) - len(work.pending)
    console.print(f"{plan.name}: {len(planned)} runs, {done} of them finished already", highlight=False)
    with StopSignals() as signals:
        signals.deferred = True
        failures = work.work(signals)
    finished = [run.folder for run in plan.runs if is_finished(run)]
    if signals.received is not None:
        raise Interrupted(f"stopped with {len(finished)} of {len(plan.runs)} runs; the same command goes on")
    if finished:
        console.print(f"written: {compare(finished, plan.out)}", highlight=False, soft_wrap=True)
    for failure in failures:
        console.print(str(failure), style="red", highlight=False, soft_wrap=True)
    return failures


def is_finished(run: PlannedRun) -> bool:
    """Has the run come to its end with this very config? Its summary, written last, says so.

    One that a guardrail has stopped is run again: it goes on from its last checkpoint and ends at once.
    """
    summary, file = read_json(run.folder / SUMMARY), run.folder / "config.yaml"
    if not file.is_file() or file.read_text(encoding="utf-8") != to_yaml(run.config):
        return False
    if not run.train:
        return "base" in summary
    trainer = run.config.trainer
    late = trainer.max_minutes is not None and summary.get("seconds", 0) >= 60 * trainer.max_minutes
    return "tuned" in summary and (late or summary.get("steps", 0) >= trainer.steps)


def command_line(run: PlannedRun, launcher: Sequence[str] = ()) -> list[str]:
    """Return what a shell would be given for this run."""
    return [*program(launcher), "train" if run.train else "evaluate", str(run.file), *run.overrides]


def launcher_program(launcher: str) -> list[str]:
    """Split the words that are put before a command; a UserError if there is no such program."""
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"--launcher {launcher!r}: {error}") from None
    if words and shutil.which(words[0], path=environment(0, 1, os.environ)["PATH"]) is None:
        raise UserError(f"--launcher: no program {words[0]!r}; write what comes before `-m rfft`")
    return words
