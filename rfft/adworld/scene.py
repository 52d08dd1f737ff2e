"""Draws one labelled advertising scene: a product on a surface before a place, with a known fault or none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rfft.adworld import assets, faults, grammar
from rfft.adworld.assets import Icon, Image8
from rfft.adworld.canvas import SIZE, Canvas, resized
from rfft.adworld.placement import Placement, ramp
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
        faults.hide(canvas, place, split, rng)
    _shadow(canvas, place, label, rng)
    _prop(canvas, product, place, attributes["prop"], label, rng)
    canvas.rgb *= np.array(_TINTS[attributes["light"]], np.float32)
    if label == "shape_hallucination":
        faults.hallucinate(canvas, place, rng)
    salient = 130.0 if label == "indistinctiveness" else 255.0
    canvas.paint(
        place.icon, place.left, place.top, ramp(min(place.horizon, place.base - 8), place.base), salient
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


def _cutout(place: Placement) -> Image8:
    """Return the product alone on its transparent canvas [64, 64, 4]."""
    cutout = np.zeros((SIZE, SIZE, 4), np.uint8)
    cutout[place.top : place.base, place.left : place.left + place.icon.shape[1]] = place.icon
    return cutout


def place_icon(icon: Icon, rng: np.random.Generator) -> Image8:
    """Return the cutout [64, 64, 4] of a product placed as in an available scene."""
    return _cutout(_place_product(icon, LABELS[0], rng))


def _place_product(product: Icon, label: str, rng: np.random.Generator) -> Placement:
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
    return Placement(icon, left, base, horizon)


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


def _attributes(product: Icon, place: Placement, label: str, rng: np.random.Generator) -> dict[str, str]:
    attributes = draw_attributes(product, place.icon.shape[0], rng)
    if (
        label == "size_mismatch" and attributes["prop"] == "none"
    ):  # this fault needs something to compare with
        names = list(prop_heights(product, place.icon.shape[0])) or list(assets.PROPS)
        attributes["prop"] = names[rng.integers(len(names))]
    return attributes


def _background(attributes: dict[str, str], place: Placement, split: str, rng: np.random.Generator) -> Canvas:
    h = place.horizon
    rgb = assets.backdrop(attributes["place"], split, h, SIZE, rng).astype(np.float32)
    floor = assets.ground(attributes["surface"], h, SIZE, rng).astype(np.float32)
    rows = np.arange(SIZE, dtype=np.float32)[:, None]
    falloff = 0.78 + 0.3 * (rows - h) / (SIZE - h)  # nearer ground is brighter
    rgb[h:] = (floor * falloff[..., None])[h:]
    depth = np.where(rows < h, 18 + 12 * rows / max(h, 1), 90 + 165 * (rows - h) / max(SIZE - h, 1))
    depth = np.broadcast_to(depth, (SIZE, SIZE)).astype(np.float32).copy()
    return Canvas(rgb, depth, np.zeros((SIZE, SIZE), np.float32))


def _shadow(canvas: Canvas, place: Placement, label: str, rng: np.random.Generator) -> None:
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
    canvas: Canvas, product: Icon, place: Placement, name: str, label: str, rng: np.random.Generator
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
    canvas.paint(icon, left, base - h, ramp(place.horizon, base), 80.0)
