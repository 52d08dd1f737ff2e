"""The moving average of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Ema:
    """average <- d_t * average + (1 - d_t) * weight after the optimizer step number t, which is 0 at first.

    d_t = min(decay, (1 + t) / (10 + t)). With this warm-up the first weights are soon forgotten, however long
    the decay: without it they would still be 94 % of the average after 66 steps at 0.999.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """Begin with a copy of `weights`, which are the trained tensors themselves: they change in place.

        What is no floating-point number (batch norm's counter) is not averaged but copied.
        """
        self.weights, self.decay, self.updates = weights, decay, 0
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in self.weights.items():
            if weight.is_floating_point():
                self.average[name].lerp_(weight, 1 - decay)
            else:
                self.average[name].copy_(weight)
        self.updates += 1

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over an average that was saved; the number of updates is in state_dict()."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model averaged weights; the trained ones are back afterwards, bit for bit."""
        trained = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates; the average itself is saved as weights are."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
