"""What the two trainings of opinions differ in: a task says how examples are read, learned and measured.

B examples, S side of a prepared picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from rfft.data.cutout import open_upright
from rfft.data.pictures import MAX_PIXELS, BrokenFile, decode, read_header
from rfft.errors import UserError
from rfft.preference.opinions import Example, Opinions, Source
from rfft.rewards.opinion import Encoded
from rfft.utils.log import messages

Figures = dict[str, Any]
Look = Callable[[str], Tensor]  # a picture's id -> its features [width], or pixels [3,S,S]
AT_ONCE = 32  # pictures that are encoded together


class Items(Dataset[dict[str, Any]]):
    """Examples made into items one by one."""

    def __init__(self, count: int, make: Callable[[int], dict[str, Any]]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.make(i)


class Task(ABC, Generic[Example]):
    """One kind of opinion."""

    name: str  # of the exported folder and of the config's group
    chosen_by: str  # the figure of validation that the best network has most of

    @abstractmethod
    def read(self, path: Path) -> Opinions[Example]:
        """Return the examples of a file or store."""

    @abstractmethod
    def build(self) -> Encoded:
        """Return the network with its first weights."""

    @abstractmethod
    def items(self, examples: Sequence[Example], look: Look) -> Items:
        """Return examples as items that torch's own collation makes batches of."""

    @abstractmethod
    def loss(self, forward: Callable[..., Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the loss of a batch, and what else is shown of it."""

    @abstractmethod
    def outputs(self, network: Encoded, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what figures are made of, [B,...] each, on the CPU."""

    @abstractmethod
    def figures(self, found: Mapping[str, Tensor], tie: float | None = None) -> Figures:
        """Return the figures of all outputs; `tie`: the threshold to use, None: the best one here."""

    @abstractmethod
    def export(self, network: Encoded, figures: Figures, folder: Path) -> None:
        """Write what rewards and metrics load."""


def looker(network: Encoded, pictures: Mapping[str, Source], frozen: bool, device: torch.device) -> Look:
    """Return what shows pictures to a network: pixels, or, of a frozen encoder, features kept in memory."""

    def pixels(name: str) -> Tensor:
        return network.prepare(read_pixels(pictures[name])[None])[0]

    if not frozen:
        return pixels
    names, kept = list(pictures), dict[str, Tensor]()
    chunks = [names[i : i + AT_ONCE] for i in range(0, len(names), AT_ONCE)]
    told = f"encoding {len(names)} pictures"
    with torch.no_grad():
        for chunk in track(chunks, told, console=messages(), transient=True):
            features = network.seen(torch.stack([pixels(name) for name in chunk]).to(device)).cpu()
            kept |= dict(zip(chunk, features, strict=True))
    return kept.__getitem__


def read_pixels(source: Source) -> Tensor:
    """Return a picture as [3,H,W] in [0,1], upright; raises UserError for one that cannot be read."""
    if isinstance(source, Path):
        array = np.asarray(open_upright(source, MAX_PIXELS).convert("RGB"))
    else:
        try:
            array = decode(read_header(source), "RGB")
        except BrokenFile as error:
            raise UserError(f"a picture in the file of votes: {error}") from None
    return torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255
