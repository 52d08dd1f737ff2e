"""Paint pictures, and recurrent generation: paint again with new seeds until the reward network accepts.

Shapes: B batch, H W pixels, K classes, W products that wait for their next attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rfft.diffusion.compositing import paste
from rfft.diffusion.sampling import rollout
from rfft.metrics.verdict import AVAILABLE, is_accepted
from rfft.objectives.base import render_bare
from rfft.types import Batch, Policy, Schedule


@torch.no_grad()
def paint(
    bundle: Policy, batch: Batch, schedule: Schedule, guidance_scale: float, reference: bool = False
) -> Tensor:
    """Return pictures [B,3,H,W] in [0,1] after the whole rollout.

    `reference` has the model paint them that there was before training. A picture whose latent is not finite
    is NaN throughout.
    """
    return paste(paint_bare(bundle, batch, schedule, guidance_scale, reference), batch.product)


@torch.no_grad()
def paint_bare(
    bundle: Policy, batch: Batch, schedule: Schedule, guidance_scale: float, reference: bool = False
) -> Tensor:
    """Return the same pictures as the generator shows them, before the product's own pixels are pasted."""
    # Not one inside the other: merged weights stay merged when the adapters are off.
    with bundle.reference() if reference else bundle.merged():
        x = rollout(bundle.denoiser, batch, schedule, guidance_scale)
    # Decoded in full precision: eight bits of mantissa would show as banding.
    with torch.autocast(x.device.type, enabled=False):
        image = render_bare(bundle, x, batch)
    # Clamped to [0,1], an infinite latent would pass for a white picture.
    return image.masked_fill(~_is_finite(x)[:, None, None, None], torch.nan)


@torch.no_grad()
def reward_logits(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what a reward network says of finished pictures [B,3,H,W]: logits [B,K] on their device.

    They are computed in float32 even where autocast is on, so that samples, evaluations, `rfft generate` and
    `rfft score` give a picture the same verdict. A picture that is not finite throughout gets NaN.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = network(images.float()).float()
    return logits.masked_fill(~_is_finite(images)[:, None], torch.nan)


def _is_finite(x: Tensor) -> Tensor:
    """Return which samples of a batch [B,...] hold neither NaN nor an infinite value, bool [B]."""
    return x.isfinite().flatten(1).all(1)


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Return the context for `mixed_precision`, which is no, bf16 or fp16."""
    half = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=mixed_precision != "no")


@dataclass
class Outcome:
    """What recurrent generation keeps of one product: the accepted picture, else the best of its attempts."""

    probabilities: Tensor  # [K], of that picture; NaN if none was finite
    attempt: int  # which of the attempts it is, from 0
    attempts: int  # how many there were

    @property
    def accepted(self) -> bool:
        return bool(is_accepted(self.probabilities))


# One attempt, by its number from 0, for each sample that waits for it -> class probabilities [W,K];
# the outcomes so far tell which of the pictures are worth keeping.
Attempt = Callable[[list[int], int, dict[int, Outcome]], Tensor]


def recur(
    attempt_all: Attempt, count: int, max_attempts: int, begun: Mapping[int, Outcome] | None = None
) -> dict[int, Outcome]:
    """Attempt each of `count` products until its picture is accepted, `max_attempts` times at most.

    begun: what came of earlier attempts at some of them, which go on from there.
    """
    best = dict(begun or {})
    for attempt in range(max_attempts):
        waiting = [i for i in range(count) if _waits(best.get(i), attempt)]
        if not waiting:
            continue
        for i, p in zip(waiting, attempt_all(waiting, attempt, best), strict=True):
            best[i] = after(p, attempt, best.get(i))
    return best


def _waits(best: Outcome | None, attempt: int) -> bool:
    return attempt == 0 if best is None else best.attempts == attempt and not best.accepted


def after(probabilities: Tensor, attempt: int, best: Outcome | None) -> Outcome:
    """Return the outcome after one more attempt, which gave a picture of these probabilities [K]."""
    if best is None or improves(probabilities, best):
        return Outcome(probabilities, attempt, attempt + 1)
    return replace(best, attempts=attempt + 1)


def improves(probabilities: Tensor, best: Outcome | None) -> bool:
    """Say whether a picture of these probabilities [K] is kept rather than the one that was refused."""
    if best is None or is_accepted(probabilities):
        return True
    return _rank(probabilities) > _rank(best.probabilities)


def _rank(probabilities: Tensor) -> float:
    """Return the probability of "available", and less than that of any picture where it is not finite."""
    return float(probabilities[AVAILABLE]) if probabilities.isfinite().all() else -1.0
