"""More things than there are icons: icons in other colours and proportions, and things of no name.

What learns from a few hundred icons knows each by its looks, and nothing of things that it never saw.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from rfft.adworld.assets import Icon, Image8

_SHAPE = 48  # pixels of a nameless thing's drawing


def varied(icon: Icon, rng: np.random.Generator) -> Icon:
    """Return the icon mirrored, stretched and recoloured by chance; its name and height stay."""
    rgba = icon.rgba if rng.random() < 0.5 else icon.rgba[:, ::-1]
    if rng.random() < 0.6:
        h, w = rgba.shape[:2]
        width = max(round(w * float(np.exp(rng.normal(0, 0.25)))), 4)
        rgba = np.asarray(
            cv2.resize(np.ascontiguousarray(rgba), (width, h), interpolation=cv2.INTER_AREA), np.uint8
        )
    if rng.random() < 0.6:
        rgba = _recoloured(rgba, rng)
    return replace(icon, rgba=np.ascontiguousarray(rgba))


def _recoloured(rgba: Image8, rng: np.random.Generator) -> Image8:
    hsv = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 180)) % 180
    hsv[..., 1] = (hsv[..., 1] * rng.uniform(0.4, 1.5) + rng.uniform(0, 50)).clip(0, 255)
    hsv[..., 2] = (hsv[..., 2] * rng.uniform(0.7, 1.3)).clip(0, 255)
    return np.dstack([cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), rgba[..., 3]])


def nameless(least_cm: float, most_cm: float, rng: np.random.Generator) -> Icon:
    """Return a thing of two to five simple shapes that nobody has a name for, of a height between two."""
    canvas = np.zeros((_SHAPE, _SHAPE, 4), np.uint8)
    height = rng.uniform(0.4, 1.0) * _SHAPE
    for part in range(int(rng.integers(2, 6))):
        colour = (*rng.uniform(20, 250, 3).tolist(), 255)
        size = rng.uniform(0.25, 0.9, 2) * (0.6 * height, height)
        foot = _SHAPE - 1 if part == 0 else _SHAPE - rng.uniform(0.2, 0.8) * height
        box = ((_SHAPE / 2 + rng.normal(0, 4), foot - size[1] / 2), tuple(size), rng.normal(0, 12))
        if rng.random() < 0.5:
            cv2.ellipse(canvas, box, colour, -1)
        else:
            cv2.fillPoly(canvas, [np.rint(cv2.boxPoints(box)).astype(np.int32)], colour)
    rows, columns = (np.flatnonzero(canvas[..., 3].any(axis)) for axis in (1, 0))
    cropped = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    cropped[..., :3] *= np.linspace(rng.uniform(0.6, 1.2), rng.uniform(0.6, 1.2), cropped.shape[1])[:, None]
    cm = float(np.exp(rng.uniform(np.log(least_cm), np.log(most_cm))))
    return Icon("", "thing", cm, cropped.clip(0, 255).astype(np.uint8))
