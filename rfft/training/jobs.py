"""Jobs that run beside each other, each one or several commands; two programs on one folder share them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rfft.errors import UserError
from rfft.utils.lock import FolderLock
from rfft.utils.log import messages
from rfft.utils.signals import StopSignals
from rfft.utils.subprocesses import PAUSE, Command, stop

DEVICES = "CUDA_VISIBLE_DEVICES"
LOGS, CLAIMS = "logs", "claims"  # folders beside those of the runs
WAIT = 2.0  # seconds between two looks at what another program has in hand


@dataclass(frozen=True)
class Task:
    """A command of a job, which is left out where its work is done."""

    command: tuple[str, ...]
    done: Callable[[], bool]
    size: float = 1.0  # how much work it is, in any unit


@dataclass(frozen=True)
class Job:
    """Commands that are run one after the other, printing into one log."""

    name: str  # also that of its log
    tasks: tuple[Task, ...]

    def finished(self) -> bool:
        return all(task.done() for task in self.tasks)

    @property
    def size(self) -> float:
        return sum(task.size for task in self.tasks)


@dataclass(frozen=True)
class Failure:
    """A job of which a command did not come to its end."""

    name: str
    exit_code: int
    log: Path
    last_line: str

    def __str__(self) -> str:
        return f"{self.name}: exit code {self.exit_code}, see {self.log}: {self.last_line}"


@dataclass
class Running:
    """A job in its slot."""

    job: Job
    claim: FolderLock
    command: Command
    left: list[Task]
    size: float  # of what was to be done
    began: float = field(default_factory=time.monotonic)


class Jobs:
    """Works off jobs in `slots` processes, each with its share of the threads and accelerators.

    A job is locked while it runs, so that several programs may work at the same ones; what another one has
    finished is not repeated.
    """

    def __init__(
        self,
        title: str,
        jobs: Sequence[Job],
        out: Path,
        slots: int = 1,
        finished: Callable[[Job], object] = lambda job: None,
    ) -> None:
        """Logs and locks lie below `out`; `finished` is called after each job that was done here."""
        self.pending = [job for job in jobs if not job.finished()]
        self.total, self.out, self.slots, self.finished = len(jobs), out, slots, finished
        self.running: dict[int, Running] = {}  # by slot
        self.failures: list[Failure] = []
        self.seconds, self.size = 0.0, 0.0  # of the jobs that were finished here
        self.progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=messages(),
            disable=not messages().is_terminal,
        )
        self.task = self.progress.add_task("", total=self.total, completed=self.total - len(self.pending))

    def work(self, signals: StopSignals) -> list[Failure]:
        """Run everything, unless a signal comes: then all processes end, and what they have done is saved."""
        try:
            with self.progress:
                while (self.pending or self.running) and signals.received is None:
                    self._start()
                    time.sleep(PAUSE if self.running else WAIT * bool(self.pending))
                    self._collect()
        finally:
            stop([running.command for running in self.running.values()])
            for running in self.running.values():
                running.claim.release()
        return self.failures

    def _start(self) -> None:
        for slot in range(self.slots):
            if slot in self.running or (taken := self._take()) is None:
                continue
            job, claim = taken
            left = [task for task in job.tasks if not task.done()]
            size = sum(task.size for task in left)
            self.running[slot] = Running(job, claim, self._run(slot, job, left), left, size)
            self._tell(f"{job.name} started, see {self._log(job)}")

    def _take(self) -> tuple[Job, FolderLock] | None:
        """Return the next job that nobody has in hand, locked; None if there is none now."""
        for job in list(self.pending):
            folder = self.out / CLAIMS / job.name
            folder.mkdir(parents=True, exist_ok=True)
            claim = FolderLock(folder)
            try:
                claim.acquire()
            except UserError:  # another program is at it: it will be finished, or free again
                continue
            self.pending.remove(job)
            if not job.finished():
                return job, claim
            claim.release()
            self.progress.advance(self.task)
        return None

    def _run(self, slot: int, job: Job, left: list[Task]) -> Command:
        """Start the next command, and take it off those that are left."""
        share = environment(slot, self.slots, os.environ)
        return Command(left.pop(0).command, self._log(job), share)

    def _collect(self) -> None:
        for slot, running in list(self.running.items()):
            code, job = running.command.exit_code(), running.job
            if code is None:
                continue
            if code == 0 and running.left:
                running.command = self._run(slot, job, running.left)
                continue
            del self.running[slot]
            running.claim.release()
            seconds = time.monotonic() - running.began
            if code:
                self.failures.append(Failure(job.name, code, self._log(job), running.command.last_line()))
            else:
                self.seconds, self.size = self.seconds + seconds, self.size + running.size
                self.finished(job)
            self._tell(f"{job.name} {'failed' if code else 'finished'} after {seconds / 60:.1f} minutes")
            self.progress.advance(self.task)

    def _log(self, job: Job) -> Path:
        return self.out / LOGS / f"{job.name}.log"

    def _tell(self, event: str) -> None:
        """Show what runs on the progress line; where there is no terminal, print what has happened."""
        names = ", ".join(running.job.name for running in self.running.values())
        self.progress.update(self.task, description=names + self._left())
        if self.progress.disable:
            self.progress.console.print(event + self._left(), highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """Say how long the rest takes at the pace of what was finished here; "" before that."""
        jobs = [*self.pending, *(running.job for running in self.running.values())]
        if not self.size or not jobs:
            return ""
        hours = sum(job.size for job in jobs) * self.seconds / self.size / self.slots / 3600
        return f"; {len(jobs)} left, about {hours:.1f} hours"


def program(launcher: Sequence[str] = ()) -> list[str]:
    """Return how `rfft` is started, in this Python or by a launcher."""
    return [*launcher, "-m", "rfft"] if launcher else [sys.executable, "-m", "rfft"]


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
