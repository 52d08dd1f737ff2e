"""Paint pictures, and recurrent generation: paint again with new seeds until the reward network accepts.

Shapes: B batch, H W pixels, W products that wait for their next attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rfft.diffusion.compositing import paste
from rfft.diffusion.sampling import rollout
from rfft.objectives.base import render_bare
from rfft.types import Batch, Policy, Schedule

AVAILABLE = 0  # index in LABELS


@torch.no_grad()
def paint(
    bundle: Policy, batch: Batch, schedule: Schedule, guidance_scale: float, reference: bool = False
) -> Tensor:
    """Pictures [B,3,H,W] in [0,1] after the whole rollout; `reference`: by the model before training."""
    return paste(paint_bare(bundle, batch, schedule, guidance_scale, reference), batch.product)


@torch.no_grad()
def paint_bare(
    bundle: Policy, batch: Batch, schedule: Schedule, guidance_scale: float, reference: bool = False
) -> Tensor:
    """The same before the product's own pixels are pasted."""
    # Not one inside the other: merged weights stay merged when the adapters are off.
    with bundle.reference() if reference else bundle.merged():
        x = rollout(bundle.denoiser, batch, schedule, guidance_scale)
    # Decoded in full precision: eight bits of mantissa would show as banding.
    with torch.autocast(x.device.type, enabled=False):
        return render_bare(bundle, x, batch)


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """`mixed_precision`: no, bf16 or fp16."""
    half = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=mixed_precision != "no")


@dataclass
class Outcome:
    """Of recurrent generation for one product: the accepted picture, else the best of its attempts."""

    probabilities: Tensor  # [5], of that picture
    attempt: int  # which of the attempts it is, from 0
    attempts: int  # how many there were

    @property
    def accepted(self) -> bool:
        return is_accepted(self.probabilities)


# One attempt, by its number from 0, for each sample that waits for it -> class probabilities [W,5];
# the outcomes so far tell which of the pictures are worth keeping.
Attempt = Callable[[list[int], int, dict[int, Outcome]], Tensor]


def recur(attempt_all: Attempt, count: int, max_attempts: int) -> dict[int, Outcome]:
    """Each of `count` products until its picture is accepted, `max_attempts` at most."""
    best: dict[int, Outcome] = {}
    waiting = list(range(count))
    for attempt in range(max_attempts):
        for i, p in zip(waiting, attempt_all(waiting, attempt, best), strict=True):
            if improves(p, best.get(i)):
                best[i] = Outcome(p, attempt, attempt + 1)
            best[i].attempts = attempt + 1
        waiting = [i for i in waiting if not best[i].accepted]
        if not waiting:
            break
    return best


def improves(probabilities: Tensor, best: Outcome | None) -> bool:
    """Whether a picture of these probabilities [5] is to be kept rather than the one that was refused."""
    return (
        best is None
        or is_accepted(probabilities)
        or bool(probabilities[AVAILABLE] > best.probabilities[AVAILABLE])
    )


def is_accepted(probabilities: Tensor) -> bool:
    return int(probabilities.argmax()) == AVAILABLE
