"""Draws one labelled advertising scene: a product on a surface before a place, with a known fault or none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rfft.adworld import assets, grammar, parts, props
from rfft.adworld.assets import Icon, Image8
from rfft.adworld.backdrops import BACKDROPS, PLACELESS
from rfft.adworld.canvas import ROWS, SIZE, Canvas, resized
from rfft.adworld.clutter import CLUTTER
from rfft.adworld.grounds import GROUNDS, cut_off
from rfft.adworld.placement import Placement, ramp
from rfft.adworld.shadows import SHADOWS, Shadow, on_wall
from rfft.adworld.styles import COPY, SOURCES, Source, draw_style
from rfft.adworld.variety import varied
from rfft.types import LABELS

LABEL_MIX: Mapping[str, float] = {LABELS[0]: 0.5} | dict.fromkeys(LABELS[1:], 0.125)
_TINTS = {
    "daylight": (1, 1, 1),
    "warm": (1.15, 0.93, 0.68),
    "cool": (0.74, 0.92, 1.18),
    "dim": (0.6, 0.57, 0.6),
}
_GAPS = {"edge": (3, 8), "gap": (2, 5), "wall": (6, 13)}  # rows from a product's base down to the surface
_DROPS = {"hover": (6, 9), "high": (9, 14), "gap": (6, 9)}  # rows from it down to where its shadow lies


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
    prop_cm: float  # true height of what stands beside the product, 0 if nothing does, or nothing of a name
    style: dict[str, str]  # how it was drawn: a way for each part, see styles.py


def draw_scene(rng: np.random.Generator, source: str, label: str | None = None) -> Scene:
    """Draw one scene of a source (see styles.SOURCES); the label is drawn from LABEL_MIX if not given."""
    origin = SOURCES[source]
    label = label or LABELS[rng.choice(5, p=list(LABEL_MIX.values()))]
    style = draw_style(origin, rng)
    icons = origin.icons()
    product = icons[rng.integers(len(icons))]
    if origin.varied:
        product = varied(product, rng)
    if origin.resized:
        product = replace(product, height_cm=product.height_cm * 3 ** rng.uniform(-1, 1))
    place = _place_product(product, rng)
    floating = style["floating"] if label == "space_mismatch" else None
    if floating in _GAPS:
        place.horizon = min(place.base + int(rng.integers(*_GAPS[floating])), SIZE - 2)
    attributes = draw_attributes(product, place.icon.shape[0], rng)
    beside = props.choose(product, place, attributes, style["props"], icons, label, rng)
    attributes["prop"] = beside.name if beside else "none"
    if origin.varied and beside:
        beside = varied(beside, rng)
    canvas = _background(attributes, place, style, floating, origin, rng)
    if style["backdrop"] in PLACELESS:
        attributes["place"] = style["backdrop"]
    if label == "indistinctiveness":
        CLUTTER[style["hide"]](canvas, place, icons, rng)
    _shadow(canvas, place, SHADOWS[style["shadow"]], floating, rng)
    if beside:
        props.paint(canvas, product, place, beside, label, rng)
    canvas.rgb *= np.array(_TINTS[attributes["light"]], np.float32)
    if label == "shape_hallucination":
        if style["part"] == COPY:
            parts.grow_copy(canvas, place, rng)
        else:
            parts.grow(canvas, place, parts.PARTS[style["part"]], rng)
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
        prop_cm=beside.height_cm if beside and beside.id else 0.0,
        style=style,
    )


def _to_bytes(values: NDArray[np.float32]) -> Image8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _cutout(place: Placement) -> Image8:
    """Return the product alone on its transparent canvas [64, 64, 4]."""
    cutout = np.zeros((SIZE, SIZE, 4), np.uint8)
    cutout[place.top : place.base, place.left : place.left + place.width] = place.icon
    return cutout


def place_icon(icon: Icon, rng: np.random.Generator) -> Image8:
    """Return the cutout [64, 64, 4] of a product placed as in an available scene."""
    return _cutout(_place_product(icon, rng))


def _place_product(product: Icon, rng: np.random.Generator) -> Placement:
    """Draw where the product stands; it says nothing of the label."""
    h, w = product.rgba.shape[:2]
    longer = rng.uniform(24, 34)
    icon = resized(product, longer * h / max(h, w))
    base = int(rng.integers(46, 56))
    left = round(rng.uniform(22, 42) - icon.shape[1] / 2)
    left = int(np.clip(left, 1, SIZE - 1 - icon.shape[1]))
    return Placement(icon, left, base, int(rng.integers(26, 41)))


def draw_attributes(product: Icon, drawn_height: int, rng: np.random.Generator) -> dict[str, str]:
    """Draw surface, place, prop and light of a scene that could be asked for with this product."""
    fitting = list(props.asked_heights(product, drawn_height))
    prop = fitting[rng.integers(len(fitting))] if fitting and rng.random() < 0.7 else "none"
    return {
        "surface": assets.SURFACES[rng.integers(len(assets.SURFACES))],
        "place": assets.PLACES[rng.integers(len(assets.PLACES))],
        "prop": prop,
        "light": assets.LIGHTS[rng.choice(4, p=[0.4, 0.2, 0.2, 0.2])],
    }


def _background(
    attributes: dict[str, str],
    place: Placement,
    style: dict[str, str],
    floating: str | None,
    origin: Source,
    rng: np.random.Generator,
) -> Canvas:
    """Paint surface and backdrop; where a product hangs over the side, the surface ends below it."""
    backdrop = BACKDROPS[style["backdrop"]](attributes["place"], origin.places, place.horizon, rng)
    mask, surface = GROUNDS[style["ground"]](attributes["surface"], place, rng)
    if floating == "side":
        mask = cut_off(mask, place, rng)
    h = place.horizon
    far, near = 18 + 12 * ROWS / max(h, 1), 90 + 165 * (ROWS - h) / max(SIZE - h, 1)
    depth = (far + mask * (near - far)).astype(np.float32)
    rgb = backdrop + mask[..., None] * (surface - backdrop)
    return Canvas(rgb.astype(np.float32), depth, np.zeros((SIZE, SIZE), np.float32))


def _shadow(
    canvas: Canvas, place: Placement, shadow: Shadow, floating: str | None, rng: np.random.Generator
) -> None:
    """Paint the product's shadow: where it stands, or as far below as it floats above its surface."""
    if floating is None:
        shadow(canvas, place, place.base - 1, rng)
    elif floating in _DROPS:
        shadow(canvas, place, min(place.base + rng.uniform(*_DROPS[floating]), SIZE - 2), rng)
    elif floating == "wall":
        on_wall(canvas, place, rng)
