"""What every training here has in common: AdamW, and the count of steps done and skipped."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfft.errors import UserError

MAX_SKIPPED = 5  # steps in a row without a finite gradient
MAX_SKIPPED_FP16 = 20  # there the loss scale has to find its level first


class AdamWSettings(Protocol):
    lr: float
    betas: list[float]
    weight_decay: float


def adamw(parameters: Iterable[nn.Parameter], settings: AdamWSettings) -> torch.optim.AdamW:
    """Return AdamW over the parameters with a config's rate, betas and weight decay."""
    betas = settings.betas[0], settings.betas[1]
    return torch.optim.AdamW(parameters, settings.lr, betas, weight_decay=settings.weight_decay)


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without fused attention, whose backward pass is many times slower on a CPU."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@dataclass
class StepCounters:
    """What a run has done so far, in all processes together."""

    step: int = 0  # optimizer steps
    skipped: int = 0  # of these, for want of a finite gradient
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # training alone

    @property
    def trained(self) -> int:
        """Return the number of steps that changed the weights."""
        return self.step - self.skipped

    def count(self, finite: bool, seconds: float) -> None:
        """Count one more step; without a finite gradient it was skipped."""
        self.step += 1
        self.seconds += seconds
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

    def check_skipped(self, finished: bool, fp16: bool, advice: str) -> None:
        """Raise a UserError after too many skipped steps in a row, or where a finished run has no other."""
        limit = MAX_SKIPPED_FP16 if fp16 else MAX_SKIPPED
        if self.skipped_in_a_row >= limit:
            raise UserError(
                f"{limit} steps in a row without a finite loss and gradient, the last one is step "
                f"{self.step}; the last checkpoint is intact. {advice}"
            )
        if finished and self.step and not self.trained:
            raise UserError(
                f"none of the {self.step} steps had a finite loss and gradient: nothing was trained, and "
                f"nothing is exported. {advice}"
            )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
