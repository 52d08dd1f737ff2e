"""What stands beside the product: its size in the picture is right, or it is the fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rfft.adworld import assets
from rfft.adworld.assets import Icon
from rfft.adworld.canvas import SIZE, Canvas, resized
from rfft.adworld.placement import Placement, ramp
from rfft.adworld.variety import nameless

LEAST, MOST = 8, 28  # pixels: props of these heights fit beside a product
ANY = 9, 24  # and those that are any icon: what has the wrong size is smaller or larger than all of them
SMALLEST, LARGEST = 6.5, 54.0  # pixels of what has the wrong size: smaller ones nobody sees
WRONG = 2.8, 4.0  # times too large or too small


def asked_heights(product: Icon, drawn_height: int) -> dict[str, float]:
    """Return the true height in pixels, beside this product, of the props that fit the picture."""
    scale = drawn_height / product.height_cm
    heights = {name: prop.height_cm * scale for name, prop in assets.props().items()}
    return {name: px for name, px in heights.items() if LEAST <= px <= MOST}


def choose(
    product: Icon,
    place: Placement,
    attributes: Mapping[str, str],
    kind: str,
    icons: Sequence[Icon],
    label: str,
    rng: np.random.Generator,
) -> Icon | None:
    """Return what stands beside the product: the prop asked for, or where `kind` says so any icon that fits,
    or a nameless thing.

    Where its size is to be the fault, something must stand there.
    """
    name = attributes["prop"]
    if kind in ("any", "nameless") and (label == "size_mismatch" or rng.random() < 0.75):
        scale = place.icon.shape[0] / product.height_cm
        if kind == "nameless":
            return nameless(ANY[0] / scale, ANY[1] / scale, rng)
        fitting = [i for i in icons if ANY[0] <= i.height_cm * scale <= ANY[1] and i.name != product.name]
        if fitting:
            return fitting[rng.integers(len(fitting))]
    if name == "none" and label == "size_mismatch":
        names = list(asked_heights(product, place.icon.shape[0])) or list(assets.PROPS)
        name = names[rng.integers(len(names))]
    return None if name == "none" else assets.props()[name]


def paint(
    canvas: Canvas, product: Icon, place: Placement, prop: Icon, label: str, rng: np.random.Generator
) -> None:
    """Paint a prop beside the product: to scale, or several times too large or too small."""
    height = prop.height_cm * place.icon.shape[0] / product.height_cm
    if label == "size_mismatch":
        height = _wrong(height, rng)
    icon = resized(prop, height)
    h, w = icon.shape[:2]
    room_left, room_right = place.left, SIZE - place.left - place.width
    on_left = rng.random() < room_left / max(room_left + room_right, 1)
    gap = rng.uniform(-3, 4)
    if label == "size_mismatch":  # to be seen, not to lie behind the product
        on_left, gap = room_left > room_right, max(gap, 0)
    left = place.left - gap - w if on_left else place.left + place.width + gap
    left = int(np.clip(round(left), -w // 4, SIZE - w + w // 4))
    base = int(np.clip(place.base + rng.integers(-4, 4), min(place.horizon + 3, SIZE - 1), SIZE - 1))
    canvas.shade(left + w / 2, base - 1, w, 0.6, 1.0)
    canvas.paint(icon, left, base - h, ramp(place.horizon, base), 80.0)


def _wrong(height: float, rng: np.random.Generator) -> float:
    """Return WRONG times a height in pixels, or as small a part of it, whichever can be seen."""
    factor, least = rng.uniform(*WRONG), WRONG[0]
    large, small = height * least <= LARGEST, height / least >= SMALLEST
    if large and (not small or rng.random() < 0.5):
        return float(min(height * factor, LARGEST))
    return float(max(height / factor, SMALLEST))
