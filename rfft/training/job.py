"""The processes of a training job, RFFT's or RFNet's: how they begin, go on from a checkpoint, and part."""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from rfft.config.schema import TrackerConfig
from rfft.errors import UserError
from rfft.training.distributed import check_launch, uses_deepspeed
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.faults import warn_of_hanging_restarts
from rfft.utils.processes import broadcast


class TrainerSettings(Protocol):
    """What both trainings have in their `trainer` group."""

    mixed_precision: Literal["no", "bf16", "fp16"]
    accumulation: int
    timeout_minutes: float


class JobConfig(Protocol):
    """What both trainings' configs have in common here."""

    @property
    def trainer(self) -> TrainerSettings: ...

    @property
    def tracker(self) -> TrackerConfig: ...


class Resumable(Protocol):
    accelerator: Accelerator

    def load(self, checkpoint: Path) -> None: ...


def start(config: JobConfig, run: Path, broadcast_buffers: bool = False) -> Accelerator:
    """`broadcast_buffers`: before every forward, from the first process to all; RFFT's are constants."""
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
    return accelerator


def resume(learner: Resumable, checkpoints: Checkpoints) -> None:
    """Go on from the main process's newest intact checkpoint, if there is one, in all processes."""
    found = broadcast(checkpoints.latest() if learner.accelerator.is_main_process else None)
    if found is None:
        return
    if not found.exists():
        raise UserError(f"{found} is not on this machine: give a run.out that all machines share")
    learner.load(found)


def leave(accelerator: Accelerator) -> None:
    """All processes together: launchers end the others when the first one fails."""
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()
