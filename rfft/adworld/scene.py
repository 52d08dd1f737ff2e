"""Draws one labelled advertising scene: a product on a surface before a place, with a known fault or none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.adworld import assets, grammar
from rfft.adworld.assets import Icon, Image8
from rfft.adworld.canvas import SIZE, Canvas, resized
from rfft.types import LABELS

LABEL_MIX: Mapping[str, float] = {LABELS[0]: 0.5} | dict.fromkeys(LABELS[1:], 0.125)
_TINTS = {
    "daylight": (1, 1, 1),
    "warm": (1.15, 0.93, 0.68),
    "cool": (0.74, 0.92, 1.18),
    "dim": (0.6, 0.57, 0.6),
}


@dataclass
class Scene:
    """A labelled scene, all uint8.

    image [64, 64, 3], product [64, 64, 4] (straight alpha), depth and saliency [64, 64].
    """

    image: Image8
    product: Image8
    depth: Image8
    saliency: Image8
    label: str
    caption: str
    prompt: str
    attributes: dict[str, str]


@dataclass
class _Placement:
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


def _ramp(horizon: int, row: float) -> float:
    """Return the depth value (255 is near) of the ground at a row."""
    return 90 + 165 * (row - horizon) / max(SIZE - horizon, 1)


def draw_scene(rng: np.random.Generator, split: str, label: str | None = None) -> Scene:
    """Draw one scene of a split; the label is drawn from LABEL_MIX when it is not given."""
    label = label or LABELS[rng.choice(5, p=list(LABEL_MIX.values()))]
    icons = assets.products(split)
    product = icons[rng.integers(len(icons))]
    if split == assets.RESIZED:
        product = replace(product, height_cm=product.height_cm * 3 ** rng.uniform(-1, 1))
    place = _place_product(product, label, rng)
    attributes = _attributes(product, place, label, rng)
    canvas = _background(attributes, place, split, rng)
    if label == "indistinctiveness":
        _hide(canvas, place, split, rng)
    _shadow(canvas, place, label, rng)
    _prop(canvas, product, place, attributes["prop"], label, rng)
    canvas.rgb *= np.array(_TINTS[attributes["light"]], np.float32)
    if label == "shape_hallucination":
        _hallucinate(canvas, place, rng)
    salient = 130.0 if label == "indistinctiveness" else 255.0
    canvas.paint(
        place.icon, place.left, place.top, _ramp(min(place.horizon, place.base - 8), place.base), salient
    )
    return Scene(
        image=_to_bytes(canvas.rgb),
        product=_cutout(place),
        depth=_to_bytes(canvas.depth),
        saliency=_to_bytes(canvas.saliency),
        label=label,
        caption=grammar.caption(product.name, product.height_cm),
        prompt=grammar.prompt(product.name, product.height_cm, attributes, rng),
        attributes=attributes,
    )


def _to_bytes(values: NDArray[np.float32]) -> Image8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _cutout(place: _Placement) -> Image8:
    """Return the product alone on its transparent canvas [64, 64, 4]."""
    cutout = np.zeros((SIZE, SIZE, 4), np.uint8)
    cutout[place.top : place.base, place.left : place.left + place.icon.shape[1]] = place.icon
    return cutout


def place_icon(icon: Icon, rng: np.random.Generator) -> Image8:
    """Return the cutout [64, 64, 4] of a product placed as in an available scene."""
    return _cutout(_place_product(icon, LABELS[0], rng))


def _place_product(product: Icon, label: str, rng: np.random.Generator) -> _Placement:
    """Draw where the product stands.

    Its own place says nothing of the label; only the horizon depends on it.
    """
    h, w = product.rgba.shape[:2]
    longer = rng.uniform(24, 34)
    icon = resized(product, longer * h / max(h, w))
    base = int(rng.integers(46, 56))
    left = round(rng.uniform(22, 42) - icon.shape[1] / 2)
    left = int(np.clip(left, 1, SIZE - 1 - icon.shape[1]))
    if label == "space_mismatch" and rng.random() < 0.5:
        horizon = base + int(rng.integers(3, 8))  # the surface begins below the product
    else:
        horizon = int(rng.integers(26, 41))
    return _Placement(icon, left, base, horizon)


def prop_heights(product: Icon, drawn_height: int) -> dict[str, float]:
    """Return the true height in pixels, beside this product, of the props that fit the picture."""
    scale = drawn_height / product.height_cm
    heights = {name: prop.height_cm * scale for name, prop in assets.props().items()}
    return {name: px for name, px in heights.items() if 8 <= px <= 28}


def draw_attributes(product: Icon, drawn_height: int, rng: np.random.Generator) -> dict[str, str]:
    """Draw surface, place, prop and light of a scene that could be asked for with this product."""
    fitting = list(prop_heights(product, drawn_height))
    prop = fitting[rng.integers(len(fitting))] if fitting and rng.random() < 0.7 else "none"
    return {
        "surface": assets.SURFACES[rng.integers(len(assets.SURFACES))],
        "place": assets.PLACES[rng.integers(len(assets.PLACES))],
        "prop": prop,
        "light": assets.LIGHTS[rng.choice(4, p=[0.4, 0.2, 0.2, 0.2])],
    }


def _attributes(product: Icon, place: _Placement, label: str, rng: np.random.Generator) -> dict[str, str]:
    attributes = draw_attributes(product, place.icon.shape[0], rng)
    if (
        label == "size_mismatch" and attributes["prop"] == "none"
    ):  # this fault needs something to compare with
        names = list(prop_heights(product, place.icon.shape[0])) or list(assets.PROPS)
        attributes["prop"] = names[rng.integers(len(names))]
    return attributes


def _background(
    attributes: dict[str, str], place: _Placement, split: str, rng: np.random.Generator
) -> Canvas:
    h = place.horizon
    rgb = assets.backdrop(attributes["place"], split, h, SIZE, rng).astype(np.float32)
    floor = assets.ground(attributes["surface"], h, SIZE, rng).astype(np.float32)
    rows = np.arange(SIZE, dtype=np.float32)[:, None]
    falloff = 0.78 + 0.3 * (rows - h) / (SIZE - h)  # nearer ground is brighter
    rgb[h:] = (floor * falloff[..., None])[h:]
    depth = np.where(rows < h, 18 + 12 * rows / max(h, 1), 90 + 165 * (rows - h) / max(SIZE - h, 1))
    depth = np.broadcast_to(depth, (SIZE, SIZE)).astype(np.float32).copy()
    return Canvas(rgb, depth, np.zeros((SIZE, SIZE), np.float32))


def _shadow(canvas: Canvas, place: _Placement, label: str, rng: np.random.Generator) -> None:
    width = place.icon.shape[1] * rng.uniform(0.85, 1.1)
    if label != "space_mismatch":
        canvas.shade(place.centre + rng.uniform(-2, 2), place.base - 1, width, rng.uniform(0.55, 0.8), 1.2)
    elif place.horizon < place.base:  # hovers: the shadow lies below
        drop = rng.uniform(6, 9)
        canvas.shade(
            place.centre + rng.uniform(-2, 2),
            min(place.base + drop, SIZE - 2),
            0.8 * width,
            rng.uniform(0.5, 0.75),
            1.3,
        )


def _prop(
    canvas: Canvas, product: Icon, place: _Placement, name: str, label: str, rng: np.random.Generator
) -> None:
    if name == "none":
        return
    prop = assets.props()[name]
    height = prop.height_cm * place.icon.shape[0] / product.height_cm
    if label == "size_mismatch":
        factor = rng.uniform(3, 4.5)
        too_large = height * factor <= 46 if height < 13 else (height * factor <= 46 and rng.random() < 0.5)
        height = height * factor if too_large else height / factor
        height = float(np.clip(height, 4, 50))
    icon = resized(prop, height)
    h, w = icon.shape[:2]
    room_left, room_right = place.left, SIZE - place.left - place.icon.shape[1]
    on_left = rng.random() < room_left / max(room_left + room_right, 1)
    gap = rng.uniform(-3, 4)
    left = place.left - gap - w if on_left else place.left + place.icon.shape[1] + gap
    left = int(np.clip(round(left), -w // 4, SIZE - w + w // 4))
    base = int(np.clip(place.base + rng.integers(-4, 4), place.horizon + 3, SIZE - 1))
    canvas.shade(left + w / 2, base - 1, w, 0.6, 1.0)
    canvas.paint(icon, left, base - h, _ramp(place.horizon, base), 80.0)


def _hide(canvas: Canvas, place: _Placement, split: str, rng: np.random.Generator) -> None:
    """Make the product hard to see: a background of its own colour, or clutter all around it."""
    if rng.random() < 0.5:
        solid = place.icon[place.icon[..., 3] > 128]
        colour = np.median(solid[:, :3], 0) if len(solid) else np.full(3, 128.0)
        grey = canvas.rgb.mean(-1, keepdims=True)
        canvas.rgb[:] = colour * (0.85 + 0.306 * (grey - grey.mean()) / 128) + 0.15 * canvas.rgb
        return
    icons = assets.products(split)
    height, width = place.icon.shape[:2]
    for _ in range(int(rng.integers(7, 12))):
        icon = resized(icons[rng.integers(len(icons))], rng.uniform(9, 20))
        left = place.left + rng.uniform(-0.45, 1.1) * width - icon.shape[1] / 4
        top = place.top + rng.uniform(-0.3, 0.9) * height - icon.shape[0] / 4
        canvas.paint(icon, round(left), round(top), _ramp(place.horizon, place.base), 130.0)


def _hallucinate(canvas: Canvas, place: _Placement, rng: np.random.Generator) -> None:
    """Grow legs, a pedestal or an extension in the product's own colour onto the product."""
    h, w = place.icon.shape[:2]
    kind = ("legs", "pedestal", "extension")[rng.integers(3)]
    rows = place.icon[-max(h // 3, 2) :] if kind != "extension" else place.icon
    solid = rows[rows[..., 3] > 128]
    colour = np.median(solid[:, :3], 0) if len(solid) else np.full(3, 110.0)
    drop = min(int(rng.integers(7, 12)), SIZE - 1 - place.base)
    layer = np.zeros((SIZE, SIZE), np.uint8)
    if kind == "legs":
        for x in np.linspace(place.left + 0.12 * w, place.left + 0.88 * w, int(rng.integers(2, 5))):
            lean = rng.uniform(-1.5, 1.5)
            cv2.line(
                layer,
                (round(x), place.base - 4),
                (round(x + lean), place.base + drop),
                255,
                int(rng.integers(2, 4)),
            )
    elif kind == "pedestal":
        half = w * rng.uniform(0.4, 0.65)
        corner = (round(place.centre - half), place.base - 3)
        cv2.rectangle(layer, corner, (round(place.centre + half), place.base + max(drop - 2, 3)), 255, -1)
    else:
        _draw_extension(layer, place, rng)
    shaded = np.clip(colour * rng.uniform(0.72, 1.02) * np.linspace(1.06, 0.88, SIZE)[:, None, None], 0, 255)
    rgba = np.concatenate([np.broadcast_to(shaded, (SIZE, SIZE, 3)), layer[..., None]], -1).astype(np.uint8)
    canvas.paint(rgba, 0, 0, _ramp(min(place.horizon, place.base - 8), place.base), 255.0)


def _draw_extension(layer: Image8, place: _Placement, rng: np.random.Generator) -> None:
    h, w = place.icon.shape[:2]
    side = int(rng.integers(3))  # left, right, top
    length, thickness = rng.uniform(9, 15), rng.uniform(5, 9)
    if side == 2:
        centre, size = (
            (place.centre + rng.uniform(-w / 4, w / 4), place.top - length / 2 + 3),
            (thickness, length + 5),
        )
    else:
        x = place.left - length / 2 + 3 if side == 0 else place.left + w + length / 2 - 3
        centre, size = (x, place.top + rng.uniform(0.35, 0.8) * h), (length + 5, thickness)
    cv2.ellipse(layer, (centre, size, rng.uniform(-15, 15)), 255, -1)
