"""`rfft sweep`: the runs of a plan, each a process of the real command line, and their comparison."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rfft.config.load import to_yaml
from rfft.config.sweep import LOGS, Plan, PlannedRun
from rfft.errors import Interrupted, UserError
from rfft.evaluation.compare import compare
from rfft.evaluation.store import SUMMARY, read_json
from rfft.utils.log import messages
from rfft.utils.signals import StopSignals
from rfft.utils.subprocesses import PAUSE, Command, stop

DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end."""

    run: PlannedRun
    exit_code: int
    log: Path
    last_line: str

    def __str__(self) -> str:
        return f"{self.run.name}: exit code {self.exit_code}, see {self.log}: {self.last_line}"


def sweep(plan: Plan, jobs: int = 1, launcher: str = "") -> list[Failure]:
    """Run what is not finished, `jobs` at a time, and compare all runs that are; return those that failed.

    `launcher` is put before the command line, as in "accelerate launch --config_file launch/multi_gpu.yaml".
    The table and the figure lie in the plan's folder. Raises Interrupted after a signal, once all has ended.
    """
    console, program = messages(), launcher_program(launcher)
    pending = [run for run in plan.runs if not is_finished(run)]
    done = len(plan.runs) - len(pending)
    console.print(f"{plan.name}: {len(plan.runs)} runs, {done} of them finished already", highlight=False)
    with StopSignals() as signals:
        signals.deferred = True
        failures = Jobs(plan, pending, jobs, program).work(signals)
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


class Jobs:
    """The processes of a sweep: `jobs` slots, each with its share of the threads and accelerators."""

    def __init__(self, plan: Plan, pending: Sequence[PlannedRun], jobs: int, launcher: Sequence[str]) -> None:
        self.plan, self.pending, self.launcher = plan, list(pending), launcher
        self.running: dict[int, tuple[PlannedRun, Command]] = {}  # by slot
        self.jobs, self.failures = jobs, list[Failure]()
        self.progress = Progress(
            TextColumn(plan.name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=messages(),
            disable=not messages().is_terminal,
        )
        done = len(plan.runs) - len(pending)
        self.task = self.progress.add_task("", total=len(plan.runs), completed=done)

    def work(self, signals: StopSignals) -> list[Failure]:
        """Run everything, unless a signal comes: then all processes end, and what they have done is saved."""
        try:
            with self.progress:
                while (self.pending or self.running) and signals.received is None:
                    self._start()
                    time.sleep(PAUSE)
                    self._collect()
        finally:
            stop([command for _, command in self.running.values()])
        return self.failures

    def _start(self) -> None:
        for slot in range(self.jobs):
            if slot not in self.running and self.pending:
                run = self.pending.pop(0)
                log = self.plan.out / LOGS / f"{run.name}.log"
                share = environment(slot, self.jobs, os.environ)
                self.running[slot] = run, Command(command_line(run, self.launcher), log, share)
                self._tell(f"{run.name} started, see {log}")

    def _collect(self) -> None:
        for slot, (run, command) in list(self.running.items()):
            code = command.exit_code()
            if code is None:
                continue
            del self.running[slot]
            minutes = (time.monotonic() - command.began) / 60
            self._tell(f"{run.name} {'finished' if code == 0 else 'failed'} after {minutes:.1f} minutes")
            if code:
                self.failures.append(Failure(run, code, command.log, command.last_line()))
            self.progress.advance(self.task)

    def _tell(self, event: str) -> None:
        """Show what runs on the progress line; where there is no terminal, print what has happened."""
        self.progress.update(self.task, description=", ".join(run.name for run, _ in self.running.values()))
        if self.progress.disable:
            self.progress.console.print(event, highlight=False, soft_wrap=True)


def command_line(run: PlannedRun, launcher: Sequence[str] = ()) -> list[str]:
    """Return what a shell would be given for this run."""
    program = [*launcher, "-m", "rfft"] if launcher else [sys.executable, "-m", "rfft"]
    return [*program, "train" if run.train else "evaluate", str(run.file), *run.overrides]


def launcher_program(launcher: str) -> list[str]:
    """Split the words that are put before a command; a UserError if there is no such program."""
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"--launcher {launcher!r}: {error}") from None
    if words and shutil.which(words[0], path=environment(0, 1, os.environ)["PATH"]) is None:
        raise UserError(f"--launcher: no program {words[0]!r}; write what comes before `-m rfft`")
    return words


def environment(slot: int, jobs: int, known: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a slot: its share of the cores and, if there are several, of the GPUs.

    Programs beside this Python, such as accelerate, are found although .venv is not activated.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), known.get("PATH", os.defpath)])
    own = {**known, "PATH": path}
    if jobs > 1:
        cores = int(known.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        own["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
        devices = visible_devices(known)
        if devices:
            own[DEVICES] = ",".join(devices[slot::jobs] or [devices[slot % len(devices)]])
    return own


def visible_devices(known: Mapping[str, str]) -> list[str]:
    """Return the names of the GPUs that may be used; none where there is none."""
    if DEVICES in known:
        return [name for name in known[DEVICES].split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]
