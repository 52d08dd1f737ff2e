"""The picture while it is painted: objects, shadows, and the depth and saliency that go with them."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.adworld.assets import Icon, Image8

SIZE = 64
ROWS = np.arange(SIZE, dtype=np.float32)[:, None]
COLUMNS = np.arange(SIZE, dtype=np.float32)[None]
Mask = NDArray[np.float32]  # [64, 64] in [0, 1]


@dataclass
class Canvas:
    """A picture while it is painted: rgb [64, 64, 3], depth and saliency [64, 64], float32 in [0, 255]."""

    rgb: NDArray[np.float32]
    depth: NDArray[np.float32]
    saliency: NDArray[np.float32]

    def paint(self, rgba: Image8, left: int, top: int, depth: float, saliency: float) -> None:
        """Composite an object [h, w, 4] with its depth and saliency; what lies outside is cut off."""
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + rgba.shape[1], SIZE), min(top + rgba.shape[0], SIZE)
        if x0 >= x1 or y0 >= y1:
            return
        part = rgba[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
        alpha = part[..., 3:] / 255
        here = (slice(y0, y1), slice(x0, x1))
        self.rgb[here] += alpha * (part[..., :3] - self.rgb[here])
        self.depth[here] += alpha[..., 0] * (depth - self.depth[here])
        self.saliency[here] += alpha[..., 0] * (saliency - self.saliency[here])

    def tint(self, rgba: Image8, left: int, top: int) -> None:
        """Composite light or shadow [h, w, 4], which is no object: depth and saliency stay."""
        Canvas(self.rgb, self.depth.copy(), self.saliency.copy()).paint(rgba, left, top, 0, 0)

    def shade(self, centre: float, row: float, width: float, strength: float, softness: float) -> None:
        """Darken the ground by a soft elliptical shadow; all lengths are in pixels."""
        shadow = np.zeros((SIZE, SIZE), np.float32)
        axes = (max(width / 2, 1.5), max(width / 9, 1.0))
        cv2.ellipse(shadow, ((centre, row), (2 * axes[0], 2 * axes[1]), 0), 1.0, -1)
        soft = np.asarray(cv2.GaussianBlur(shadow, (0, 0), softness), np.float32)
        self.rgb *= 1 - strength * soft[..., None]


def resized(icon: Icon, height: float) -> Image8:
    """Return the icon [h, w, 4] at a height in pixels.

    Colours are averaged with premultiplied alpha.
    """
    h = max(round(height), 2)
    w = max(round(icon.rgba.shape[1] * h / icon.rgba.shape[0]), 2)
    rgba = icon.rgba.astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    small = np.asarray(cv2.resize(rgba, (w, h), interpolation=cv2.INTER_AREA), np.float32)
    small[..., :3] /= np.maximum(small[..., 3:], 1) / 255
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)
