"""The moving average of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """average <- decay * average + (1 - decay) * weight, after every optimizer step."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """`weights`: the trained tensors themselves, which the optimizer changes in place."""
        self.weights, self.decay = weights, decay
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, 1 - self.decay)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with averaged weights; the trained ones are back afterwards, bit for bit."""
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
