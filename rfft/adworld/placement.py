"""Where a product stands in a scene."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rfft.adworld.assets import Image8
from rfft.adworld.canvas import SIZE


@dataclass
class Placement:
    """A product on its surface; rows and columns in pixels of the scene."""

    icon: Image8  # the product at its drawn size [h, w, 4]
    left: int
    base: int  # first row below the product
    horizon: int  # row of the surface's far edge

    @property
    def top(self) -> int:
        return self.base - self.icon.shape[0]

    @property
    def width(self) -> int:
        return self.icon.shape[1]

    @property
    def centre(self) -> float:
        return self.left + self.width / 2

    def solid(self, lower_third: bool = False) -> NDArray[np.uint8]:
        """Return the colours [N, 3] of the product's opaque pixels, of its lower third alone if asked."""
        rows = self.icon[-max(len(self.icon) // 3, 2) :] if lower_third else self.icon
        found = rows[rows[..., 3] > 128][:, :3]
        return found if len(found) else np.full((1, 3), 120, np.uint8)

    def colour(self, lower_third: bool = False) -> NDArray[np.float64]:
        """Return the median colour [3] of the product, or of its lower third."""
        return np.median(self.solid(lower_third), axis=0)


def ramp(horizon: int, row: float) -> float:
    """Return the depth value (255 is near) of the ground at a row."""
    return 90 + 165 * (row - horizon) / max(SIZE - horizon, 1)
