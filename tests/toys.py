"""Rewards of one's own, in the form that docs/rewards.md describes."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from rfft.objectives.regularizers import REGULARIZERS, Regularizer
from rfft.types import Batch
from rfft.utils.registry import resolve


def regularizers(name: str) -> Regularizer | None:
    """The one of this name in a config, or None for "none"."""
    return None if name == "none" else resolve("objective.regularizer", name, REGULARIZERS)()


class Darkness:
    """Likes pictures of a given brightness."""

    def __init__(self, wanted: float = 0.0) -> None:
        self.wanted = wanted

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss per picture [B], and scalars to be logged."""
        brightness = image.mean((1, 2, 3))
        letters = sum(len(text) for text in (*batch.captions, *batch.prompts)) / len(image)
        scalars = {"brightness": brightness.mean(), "letters": torch.tensor(letters)}
        return (brightness - self.wanted).square(), scalars


def no_memory(*_: object) -> NoReturn:
    """What a GPU says that has too little memory, in place of any function."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


class Faulty:
    """A reward that says nothing, but lets something go wrong at one of its calls in one process."""

    def __init__(self, what: str, call: int, rank: int = 0, marker: str = "") -> None:
        """`what`: nan, memory, death, signal or full (the disk of runs/); `marker`: file that keeps it from
        happening a second time."""
        self.what, self.call, self.rank, self.marker, self.calls = what, call, rank, marker, 0

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        due = self.calls == self.call and int(os.environ.get("RANK", "0")) == self.rank
        if due and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            return self.fail(image), {}
        return 0 * image.mean((1, 2, 3)), {}

    def fail(self, image: Tensor) -> Tensor:
        if self.what == "memory":
            no_memory()
        if self.what == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.what == "full":
            with suppress(OSError), Path("runs/ballast").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        return (float("nan") if self.what == "nan" else 0.0) * image.mean((1, 2, 3))
