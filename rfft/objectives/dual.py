"""objective.beta=auto: the multiplier of a constraint, drift <= target, by dual ascent in its logarithm."""

from __future__ import annotations

import math
from typing import Any

RANGE = 100.0  # beta stays within this factor of where it began


class DualBeta:
    """Raises beta while the model drifts more than it may, lowers it while it drifts less.

    Anti-windup, in two ways: beta is its own integrator and stays within its range, so that there is nothing
    to unwind; and it waits until the drift first reaches its target, since a model that has just left its
    reference says nothing about the beta that will hold it.
    """

    def __init__(self, target: float, start: float, rate: float) -> None:
        """target: the drift to hold; start: the first beta; rate: the largest change of log beta."""
        self.target, self.start, self.rate = target, start, rate
        self.value, self.holding = start, False

    def update(self, drift: float) -> None:
        """Take one step: log beta += rate * clip(drift / target - 1, -1, 1)."""
        self.holding = self.holding or drift >= self.target
        if not self.holding:
            return
        error = min(1.0, max(-1.0, drift / self.target - 1))
        self.value *= math.exp(self.rate * error)
        self.value = min(self.start * RANGE, max(self.start / RANGE, self.value))

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "holding": self.holding}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.holding = state["value"], state["holding"]
