"""A training job, of whatever network: how its processes begin, open the run, go on from a checkpoint, and
part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from rfft.config.schema import RunConfig, TrackerConfig
from rfft.errors import UserError
from rfft.training.distributed import check_launch, uses_deepspeed
from rfft.training.step import Learner
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.faults import explained, warn_of_hanging_restarts
from rfft.utils.lock import FolderLock
from rfft.utils.log import CONFIG, messages, open_run, refuse_other_runs, write_environment
from rfft.utils.processes import broadcast
from rfft.utils.signals import StopSignals


def halve() -> str:
    """Say what needs less memory in a training of a small network."""
    return "Set half of trainer.batch_size and twice trainer.accumulation: the same command goes on"


class TrainerSettings(Protocol):
    """What the trainings have in their `trainer` group."""

    mixed_precision: Literal["no", "bf16", "fp16"]
    accumulation: int
    timeout_minutes: float


class JobConfig(Protocol):
    """What the trainings' configs have in common here."""

    @property
    def run(self) -> RunConfig: ...

    @property
    def trainer(self) -> TrainerSettings: ...

    @property
    def tracker(self) -> TrackerConfig: ...


Config = TypeVar("Config", bound=JobConfig)


def in_job(
    config: Config,
    train: Callable[[Config, FolderLock, StopSignals], None],
    advice: Callable[[], str] = halve,
) -> Path:
    """Train, or go on with, the run that a config describes; returns its folder.

    `advice` is called for what helps against lack of memory. Raises a UserError where another command is at
    work in that folder.
    """
    run = Path(config.run.out) / config.run.name
    with explained(advice), StopSignals() as signals, FolderLock(run) as lock:
        train(config, lock, signals)
    return run


def start(config: JobConfig, lock: FolderLock, broadcast_buffers: bool = False) -> Accelerator:
    """Let the job's processes know of each other, and lock the run's folder if it is there already.

    `broadcast_buffers`: before every forward, from the first process to all; RFFT's are constants.
    """
    trainer = config.trainer
    if trainer.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("trainer.mixed_precision=fp16 needs a GPU: set trainer.mixed_precision=bf16 or no")
    kind = config.tracker.kind
    if kind != "none" and find_spec(kind) is None:
        raise UserError(f"tracker.kind={kind}: {kind} is not installed; run `pip install rfft[{kind}]`")
    warn_of_hanging_restarts()
    check_launch(trainer.mixed_precision)
    on_cpu = not torch.accelerator.is_available()
    timeout = timedelta(minutes=trainer.timeout_minutes)
    # DeepSpeed's processes on CPUs would each think they are alone without being told how to talk.
    backend = "gloo" if on_cpu and uses_deepspeed() else None
    accelerator = Accelerator(
        # Or several processes on CPUs would not know of each other; with it, accelerate forgets DeepSpeed.
        cpu=on_cpu and not uses_deepspeed(),
        # DeepSpeed's half precision is one of the weights.
        mixed_precision="no" if uses_deepspeed() else trainer.mixed_precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=broadcast_buffers),
            InitProcessGroupKwargs(backend, timeout=timeout),
        ],
    )
    accelerator.gradient_accumulation_steps = trainer.accumulation  # not what a launch file says
    if accelerator.is_main_process and (lock.folder / CONFIG).exists():
        lock.acquire()  # before models are loaded for nothing
    return accelerator


def open_job(lock: FolderLock, settings: str, may_change: Sequence[str], accelerator: Accelerator) -> None:
    """Make the run's folder, or open it to go on, and lock it; the first process does, the others wait for
    it.
    """
    if accelerator.is_main_process:
        refuse_other_runs(lock.folder, settings, may_change)
        lock.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        open_run(lock.folder, settings, may_change)
        write_environment(lock.folder)
    accelerator.wait_for_everyone()


def resume(run: Path, learner: Learner[Any], checkpoints: Checkpoints) -> None:
    """Go on from the first process's newest intact checkpoint, if there is one, in all processes; say so."""
    main = learner.accelerator.is_main_process
    found = broadcast(checkpoints.latest() if main else None)
    if found is None:
        return
    if not found.exists():
        raise UserError(f"{found} is not on this machine: give a run.out that all machines share")
    learner.load(found)
    step, steps = learner.counters.step, learner.steps
    told = f"is finished after step {step}" if learner.finished() else f"goes on after step {step} of {steps}"
    messages(quiet=not main).print(f"{run} {told}", highlight=False, soft_wrap=True)


def leave(accelerator: Accelerator) -> None:
    """End the job in all processes together, as launchers end the others when the first one fails."""
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()
