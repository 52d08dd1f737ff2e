"""Which sampling steps are trained: a pure function of seed and position, the same in all processes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Draw = Literal["even", "random", "last"]


@dataclass(frozen=True)
class TrainedSteps:
    """Draws the sampling steps to train on among the last ones of the sampler's S steps.

    A pure function of its arguments, so that all processes stop their rollouts at the same place.
    """

    seed: int
    steps: int  # S
    last: int  # the pool: steps S - last .. S - 1
    grad_steps: int  # trained steps per micro-batch
    strata: int  # draws per optimizer step
    draw: Draw = "even"
    bias: float = 0.0  # of random draws: the i-th step of the pool, from 1, weighs i ** bias

    def __call__(self, optimizer_step: int, stratum: int) -> list[int]:
        """Return ascending step indices of one draw."""
        if self.draw == "last":
            return list(range(self.steps - self.grad_steps, self.steps))
        if self.draw == "random":
            return self._random(optimizer_step, stratum)
        return self._even(optimizer_step, stratum)

    def _even(self, optimizer_step: int, stratum: int) -> list[int]:
        """Points at equal distances over the pool; over the optimizer steps each is drawn equally often."""
        # Systematic sampling: one offset per optimizer step, spread over its draws.
        offset = random.Random(f"{self.seed}/{optimizer_step}").random()
        stride = self.last / self.grad_steps
        first = (stratum + offset) / self.strata
        return [self.steps - self.last + int((first + j) * stride) for j in range(self.grad_steps)]

    def _random(self, optimizer_step: int, stratum: int) -> list[int]:
        """Without replacement, each next one with a probability in proportion to its weight."""
        uniform = random.Random(f"{self.seed}/{optimizer_step}/{stratum}").random
        # Efraimidis and Spirakis (2006): the largest u ** (1 / weight) are such a sample.
        keys = {i: uniform() ** (1 / (i + 1) ** self.bias) for i in range(self.last)}
        chosen = sorted(keys, key=lambda i: keys[i])[-self.grad_steps :]
        return sorted(self.steps - self.last + i for i in chosen)
