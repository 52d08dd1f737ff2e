"""The ways in which scenes are drawn, and who sees which.

A style says nothing of the label: it is how a shadow falls, what stands behind, what a fault looks like.
Whole styles are held out, as products and places are: what a network says of those it never saw is what it
knows of the fault. RFNet, judge and monitor learn from different ones, so that they do not share all blind
spots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from rfft.adworld import assets
from rfft.adworld.assets import Icon

COPY = "copy"  # a part that is the product's own mirror image
EDGELESS = ("cove",)  # grounds without an edge that a product could float above
PLAIN: Mapping[str, tuple[str, ...]] = {
    "backdrop": ("panorama",),
    "ground": ("flat",),
    "shadow": ("ellipse",),
    "props": ("asked",),  # the twelve that prompts can ask for
    "floating": ("edge", "hover"),
    "hide": ("own_colour", "pile"),
    "part": ("legs", "pedestal", "extension"),
}
RFNET: Mapping[str, tuple[str, ...]] = {
    "backdrop": ("panorama", "crop", "crop", "gradient", "panels", "texture", "collage", "mosaic"),
    "ground": ("flat", "slanted", "matte", "cove", "front", "planks"),
    "shadow": ("ellipse", "cast", "box", "streak", "line", "wide"),
    "props": ("any", "any", "asked", "nameless"),
    "floating": ("edge", "hover", "side"),
    "hide": ("own_colour", "pile", "camouflage", "confetti"),
    "part": ("legs", "pedestal", "extension", "bent_legs", "handle", COPY, "plate", "knob"),
}
JUDGE: Mapping[str, tuple[str, ...]] = {
    "backdrop": ("panorama", "crop", "crop", "gradient", "stripes", "texture", "collage", "weave"),
    "ground": ("flat", "round_table", "matte", "front", "slanted", "inlay"),
    "shadow": ("ellipse", "cast", "penumbra", "trapezoid", "streak", "wide"),
    "props": ("any", "any", "asked", "nameless"),
    "floating": ("edge", "hover", "high"),
    "hide": ("own_colour", "pile", "copies", "foliage"),
    "part": ("legs", "pedestal", "extension", "wheels", "tube", COPY, "bulge", "antenna"),
}
MONITOR: Mapping[str, tuple[str, ...]] = {
    "backdrop": ("panorama", "crop", "crop", "panels", "stripes", "mosaic", "weave"),
    "ground": ("flat", "round_table", "matte", "cove", "slanted", "planks", "inlay"),
    "shadow": ("ellipse", "box", "penumbra", "cast", "line"),
    "props": ("any", "any", "asked", "nameless"),
    "floating": ("edge", "hover", "side", "high"),
    "hide": ("own_colour", "pile", "camouflage", "foliage"),
    "part": ("legs", "pedestal", "extension", "wheels", "bent_legs", "bulge", "handle"),
}
VAL: Mapping[str, tuple[str, ...]] = {
    "backdrop": ("bokeh", "panorama"),
    "ground": ("checker",),
    "shadow": ("twin", "blob"),
    "props": ("any",),
    "floating": ("gap", "hover"),
    "hide": ("haze",),
    "part": ("stilts",),
}
TEST: Mapping[str, tuple[str, ...]] = {
    "backdrop": ("clouds", "window", "panorama"),
    "ground": ("rug",),
    "shadow": ("mirror", "band"),
    "props": ("any",),
    "floating": ("wall", "hover"),
    "hide": ("pattern", "heap"),
    "part": ("wings",),
}


@dataclass(frozen=True)
class Source:
    """What a set of scenes is drawn with."""

    key: int  # keeps its draws apart from others'
    products: str  # split of the product icons, and of props that are any icon
    places: str  # split of the panoramas
    styles: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PLAIN)
    plain: float = 0.0  # share of scenes in AdWorld's first, plain styles
    left_out: int | None = None  # every third product name, from this one on, is another network's
    resized: bool = False  # every scene states another size for its product, so that captions must be read
    varied: bool = False  # icons come in other colours and proportions, see variety.py

    def icons(self) -> tuple[Icon, ...]:
        """Return the products."""
        return _icons(self.products, self.left_out)


@cache
def _icons(split: str, left_out: int | None) -> tuple[Icon, ...]:
    found = assets.products(split)
    if left_out is None:
        return found
    names = sorted({icon.name for icon in found})[left_out::3]
    return tuple(icon for icon in found if icon.name not in names)


PLAIN_SHARE = 0.35
SOURCES: Mapping[str, Source] = {
    "train": Source(0, "train", "train"),
    "val": Source(1, "val", "val"),
    "test": Source(2, "test", "test"),
    # what the networks learn from
    "rfnet": Source(3, "train", "train", RFNET, PLAIN_SHARE, left_out=0, resized=True, varied=True),
    "judge": Source(4, "train", "train", JUDGE, PLAIN_SHARE, left_out=1, resized=True, varied=True),
    "monitor": Source(5, "train", "train", MONITOR, PLAIN_SHARE, left_out=2, resized=True, varied=True),
    # what they are judged by: nothing of it was seen in training
    "val_styles": Source(6, "val", "val", VAL),
    "test_styles": Source(7, "test", "test", TEST),
    # one ingredient new at a time
    "new_styles": Source(8, "train", "train", TEST),
    "new_products": Source(9, "test", "train"),
    "new_places": Source(10, "train", "test"),
}


def draw_style(source: Source, rng: np.random.Generator) -> dict[str, str]:
    """Draw one way for each part of a scene."""
    styles = PLAIN if rng.random() < source.plain else source.styles
    style = {part: ways[rng.integers(len(ways))] for part, ways in styles.items()}
    if style["ground"] in EDGELESS and style["floating"] != "high":
        style["floating"] = "hover"
    return style
