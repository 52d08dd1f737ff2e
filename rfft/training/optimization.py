"""What RFFT's and RFNet's training have in common: AdamW, and the count of steps done and skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn

from rfft.errors import UserError

MAX_SKIPPED = 5  # steps in a row without a finite gradient
MAX_SKIPPED_FP16 = 20  # there the loss scale has to find its level first


class AdamWSettings(Protocol):
    lr: float
    betas: list[float]
    weight_decay: float


def adamw(parameters: Iterable[nn.Parameter], settings: AdamWSettings) -> torch.optim.AdamW:
    betas = settings.betas[0], settings.betas[1]
    return torch.optim.AdamW(parameters, settings.lr, betas, weight_decay=settings.weight_decay)


@dataclass
class StepCounters:
    """What a run has done so far, in all processes together."""

    step: int = 0  # optimizer steps
    skipped: int = 0  # of these, for want of a finite gradient
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # training alone

    def count(self, finite: bool, seconds: float) -> None:
        """One more step; without a finite gradient it was skipped."""
        self.step += 1
        self.seconds += seconds
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

    def check_skipped(self, scaler: Any, advice: str) -> None:
        """A UserError after too many steps in a row without a finite gradient; `scaler`: fp16's, or None."""
        limit = MAX_SKIPPED if scaler is None else MAX_SKIPPED_FP16
        if self.skipped_in_a_row >= limit:
            raise UserError(
                f"{limit} steps in a row without a finite loss and gradient, the last one is step "
                f"{self.step}; the last checkpoint is intact. {advice}"
            )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
