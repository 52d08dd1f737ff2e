"""A stop that was asked for: by Ctrl-C, by a scheduler (SIGTERM), by Slurm before time is up (SIGUSR1)."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import torch

from rfft.errors import Interrupted
from rfft.utils.faults import is_lost_process

EARLY = "stopped before training began; the same command starts again"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Within it, the first signal ends a run well; the second one ends the process at once.

    As long as there is nothing to save, the first one raises Interrupted where it is; once `deferred` is set,
    it is only noted in `received`, and raise_if_stopped() raises.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number)
        if not self.deferred:
            raise Interrupted(EARLY)

    def raise_if_stopped(self, accelerator: Any, step: int) -> None:
        """Raise Interrupted in all processes once any has received a signal; to be called in all of them."""
        flag = torch.tensor(float(self.received is not None), device=accelerator.device)
        if accelerator.reduce(flag, "sum") > 0:
            raise Interrupted(f"stopped after step {step}; the same command goes on from there")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received is not None and not self.deferred and error is not None and is_lost_process(error):
            raise Interrupted(EARLY) from error  # the other process got the signal first
