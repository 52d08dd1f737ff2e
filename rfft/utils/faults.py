"""What ends a command from outside of the maths, said in one line: memory, and other processes."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistError

from rfft.errors import ProcessLost, UserError

log = logging.getLogger(__name__)
_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "CUDA error: out of memory",  # others have filled the GPU: not from torch's allocator, so of no own type
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# gloo raises plain RuntimeErrors; the words are those of its transports and of torch's stores.
_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")
RESUMES = "goes on from the last checkpoint, torchrun with --max-restarts by itself"


@contextmanager
def explained(advice: Callable[[], str], again: str = RESUMES) -> Iterator[None]:
    """Turn lack of memory and the loss of another process within the block into errors of one line.

    `advice` is called for what helps against lack of memory, only then; `again` says what the same command
    does the next time. Raises UserError or ProcessLost.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if problem := memory_problem(error):
            raise UserError(f"{problem}. {advice()}") from error
        if is_lost_process(error):
            raise ProcessLost(
                f"process {os.environ.get('RANK', 0)}: another process has ended or hangs "
                f"({_first_sentence(error)}); the launcher names it. The same command {again}"
            ) from error
        raise


@contextmanager
def painting(batch_size: int) -> Iterator[None]:
    """Explain lack of memory in commands that paint and judge evaluate.batch_size pictures at a time."""
    fewer = f"evaluate.batch_size={batch_size // 2} (the same pictures), " if batch_size > 1 else ""
    advice = (
        f"Try in this order: {fewer}trainer.mixed_precision=bf16, with it model.dtype=bfloat16 "
        "objective.precision=bf16 (half the memory for weights). Lower precision changes pictures a little: "
        "use it for all that is compared"
    )
    with explained(lambda: advice, again="starts anew"):
        yield


def memory_problem(error: BaseException) -> str | None:
    """Return what to say if the accelerator or the machine has too little memory, else None."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if known or any(words in str(error) for words in _MEMORY):
        return f"out of memory ({_first_sentence(error)})"
    return None


def is_lost_process(error: BaseException) -> bool:
    """Tell whether an error means that another process of the job has ended or hangs."""
    text = str(error).lower()
    return isinstance(error, DistError) or any(words in text for words in _LOST)


def _first_sentence(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(". ")[0]


def warn_of_hanging_restarts() -> None:
    """Warn of a setting of torchrun with which restarted processes hang.

    They would find the addresses of the dead ones in its shared store.
    """
    known = os.environ.get
    restarts = int(known("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and known("TORCHELASTIC_USE_AGENT_STORE") == "True" and known("RANK", "0") == "0":
        log.warning("a restart by torchrun would hang: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun")


def require_agreement(accelerator: Any, run: Path, step: int, ids: Sequence[str]) -> None:
    """Raise a UserError unless all processes go on from one checkpoint with one list of products.

    Machines may see different files. `accelerator` is accelerate's.
    """
    here = torch.tensor([[step, zlib.crc32("\n".join(ids).encode())]], device=accelerator.device)
    for found, what in zip(accelerator.gather(here).T, ("checkpoint", "products"), strict=True):
        if (found != found[0]).any():
            raise UserError(
                f"{run}: the processes see different {what}; run folder and data must lie where all machines "
                "see the same files"
            )
