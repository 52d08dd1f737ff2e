"""What a reward network's outputs say of pictures: whether one is accepted is decided here alone.

K classes, in the order of types.label_names(K); outputs are logits or probabilities [..., K].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rfft.types import label_names

AVAILABLE = 0  # index in types.LABELS
NOT_FINITE = -1
NO_LABEL = "not_finite"


def verdicts_of(outputs: Tensor) -> Tensor:
    """Return the index of the likeliest class [...], NOT_FINITE where an output is NaN or infinite.

    argmax alone takes the first NaN for the largest, and so a picture that does not exist for available.
    """
    return torch.where(outputs.isfinite().all(-1), outputs.argmax(-1), NOT_FINITE)


def is_accepted(outputs: Tensor) -> Tensor:
    """Return whether a picture is accepted, bool [...]: all is finite and "available" likeliest."""
    return verdicts_of(outputs) == AVAILABLE


@dataclass(frozen=True)
class Verdict:
    """What a reward network says of one picture."""

    label: str  # the likeliest class, or "not_finite"
    accepted: bool
    probabilities: dict[str, float]  # of each class; NaN where the label is "not_finite"

    @classmethod
    def of(cls, probabilities: Tensor) -> Verdict:
        """Read one picture's class probabilities [K]."""
        names, found = label_names(len(probabilities)), int(verdicts_of(probabilities))
        finite = found != NOT_FINITE
        values = probabilities.tolist() if finite else [math.nan] * len(names)
        label = names[found] if finite else NO_LABEL
        return cls(label, bool(is_accepted(probabilities)), dict(zip(names, values, strict=True)))

    @property
    def is_finite(self) -> bool:
        """Tell whether picture and verdict are finite; if not, there is no label."""
        return self.label != NO_LABEL
