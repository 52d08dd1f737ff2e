"""Where a product stands in a scene."""

from dataclasses import dataclass

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
    def centre(self) -> float:
        return self.left + self.icon.shape[1] / 2


def ramp(horizon: int, row: float) -> float:
    """Return the depth value (255 is near) of the ground at a row."""
    return 90 + 165 * (row - horizon) / max(SIZE - horizon, 1)
