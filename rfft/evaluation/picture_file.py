"""Pictures of a grid on their way from the painter to the sheets: on disk, as there may be thousands.

Shapes: P pictures, H W pixels.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor


class PictureFile:
    """Pictures uint8 [P,3,H,W] in a file without a name, which is gone when nobody needs it any more."""

    def __init__(self, count: int, folder: Path | None = None) -> None:
        """Make room for P pictures in a folder, or where temporary files lie."""
        self.count, self.shape = count, torch.Size([0, 0, 0])
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  lives as long as this object

    def write(self, number: int, picture: Tensor) -> None:
        """Keep picture `number`, uint8 [3,H,W], in place of any earlier one."""
        self.shape = picture.shape
        os.pwrite(self._file.fileno(), picture.contiguous().numpy().tobytes(), number * self._size)

    def read(self, first: int, count: int) -> Tensor:
        """Return some of the pictures, [count,3,H,W] or fewer at the end."""
        count = max(0, min(count, self.count - first))
        data = bytearray(os.pread(self._file.fileno(), count * self._size, first * self._size))
        return torch.frombuffer(data, dtype=torch.uint8).unflatten(0, (count, *self.shape))

    def all(self) -> Tensor:
        """Return all pictures; what is read of them comes from the disk."""
        mapped = np.memmap(self._file, np.uint8, "c", shape=(self.count, *self.shape))
        return torch.from_numpy(mapped)

    @property
    def _size(self) -> int:
        return math.prod(self.shape)
