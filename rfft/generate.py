"""Paint pictures, and recurrent generation: paint again with new seeds until the reward network accepts.

Shapes: B batch, H W pixels, N products, K attempts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rfft.diffusion import paste, rollout
from rfft.step import render_bare
from rfft.types import Batch, Policy, Schedule

AVAILABLE = 0  # index in LABELS

# Samples and the number of attempts each has behind it -> pictures [B,3,H,W], class probabilities [B,5]
Paint = Callable[[list[int], list[int]], tuple[Tensor, Tensor]]


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
class Painted:
    """What recurrent generation made of one product: the accepted picture, else the best of its attempts."""

    image: Tensor  # [3,H,W]
    probabilities: Tensor  # [5]
    attempt: int  # which of the attempts this picture is, from 0
    attempts: int  # how many there were

    @property
    def accepted(self) -> bool:
        return int(self.probabilities.argmax()) == AVAILABLE


def recur(paint: Paint, count: int, max_attempts: int, batch_size: int) -> Iterator[tuple[int, Painted]]:
    """Each of `count` products until its picture is accepted, `max_attempts` at most; yields as they finish.

    Refused products go back to the front of the queue, so batches stay full and only those in flight are
    held in memory.
    """
    queue = deque(range(count))
    attempts = [0] * count
    best: dict[int, Painted] = {}
    while queue:
        chosen = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
        images, probabilities = paint(chosen, [attempts[i] for i in chosen])
        refused = []
        for i, image, p in zip(chosen, images, probabilities, strict=True):
            new = Painted(image, p, attempts[i], attempts[i] + 1)
            attempts[i] += 1
            kept = best.pop(i, new)
            if new.accepted or p[AVAILABLE] > kept.probabilities[AVAILABLE]:
                kept = new
            kept.attempts = attempts[i]
            if kept.accepted or attempts[i] == max_attempts:
                yield i, kept
            else:
                best[i] = kept
                refused.append(i)
        queue.extendleft(reversed(refused))
