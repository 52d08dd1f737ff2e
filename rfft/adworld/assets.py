"""What AdWorld draws with: product icons, props, places and procedural surfaces, split three ways."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.errors import UserError

ROOT = Path(__file__).parent.parent / "assets" / "adworld"
SPLITS = ("train", "val", "test")
SURFACES = ("wood", "marble", "linen", "grass", "sand", "slate")
PLACES = ("forest", "city", "meadow", "seaside", "night", "room", "hall", "workshop", "studio")
LIGHTS = ("daylight", "warm", "cool", "dim")
PROPS: dict[str, tuple[str, float]] = {  # name -> icon, true height in cm
    "fruit bowl": ("scopia_bowlWithFruits", 14.0),
    "cactus": ("blendswapcc0_cactus", 22.5),
    "gift": ("blendswapccby_gift", 25.0),
    "teddy bear": ("blendswapcc0_teddyBear", 32.0),
    "vase": ("scopia_jar", 40.0),
    "lamp": ("scopia_little_lamp1", 42.0),
    "tulips": ("blendswapccby_tulips", 43.0),
    "crate": ("blendswapcc0_crate", 59.0),
    "cone": ("scopia_cone", 70.0),
    "barrel": ("blendswapcc0_barrel", 90.0),
    "palm": ("blendswapcc0_plant", 117.0),
    "christmas tree": ("scopia_christmas_tree", 203.0),
}
PROP_NAMES = ("none", *PROPS)
_NOT_PRODUCTS = set(PROPS) | {"bowl with fruits", "little lamp", "plant"}
_STRIP_HORIZON = 96  # row of zero elevation in a panorama strip of 128 rows

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Icon:
    """A rendered product or prop with its name and true height."""

    id: str
    name: str
    height_cm: float
    rgba: Image8  # [h, w, 4], straight alpha, cropped to its box


def _read(path: Path, flags: int) -> Image8:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise UserError(f"{path}: missing or broken; install rfft anew")
    return np.ascontiguousarray(image, np.uint8)


def _read_rgba(name: str) -> Image8:
    return np.ascontiguousarray(
        _read(ROOT / "icons" / f"{name}.png", cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]]
    )


@cache
def props() -> dict[str, Icon]:
    """Return all props by name."""
    return {name: Icon(icon, name, cm, _read_rgba(icon)) for name, (icon, cm) in PROPS.items()}


@cache
def products(split: str) -> tuple[Icon, ...]:
    """Return the products of a split.

    Whole names go to one split, so that test sees no product name of training.
    """
    entries = [e for e in json.loads((ROOT / "icons.json").read_text()) if e["name"] not in _NOT_PRODUCTS]
    names = sorted({e["name"] for e in entries})
    np.random.default_rng(2408_00418).shuffle(names)
    bounds = {"train": (0.0, 0.7), "val": (0.7, 0.82), "test": (0.82, 1.0)}[split]
    chosen = set(names[round(bounds[0] * len(names)) : round(bounds[1] * len(names))])
    return tuple(
        Icon(e["id"], e["name"], e["height_cm"], _read_rgba(e["id"])) for e in entries if e["name"] in chosen
    )


@cache
def panoramas(split: str) -> dict[str, tuple[Image8, ...]]:
    """Return panorama strips [128, w, 3] of a split by place word.

    Test has places of its own; validation has the last sixth of each training panorama, training the rest.
    """
    out: dict[str, list[Image8]] = {}
    for entry in json.loads((ROOT / "places.json").read_text()):
        if entry["split"] != ("test" if split == "test" else "train"):
            continue
        strip = _read(ROOT / "places" / f"{entry['id']}.jpg", cv2.IMREAD_COLOR)[..., ::-1]
        cut = strip.shape[1] * 5 // 6
        part = {"train": strip[:, :cut], "val": strip[:, cut:], "test": strip}[split]
        mirrored = np.concatenate([part, part[:, ::-1]], 1)  # a window may run over the edge
        out.setdefault(entry["place"], []).append(np.ascontiguousarray(mirrored))
    return {place: tuple(strips) for place, strips in out.items()}


def backdrop(place: str, split: str, horizon: int, size: int, rng: np.random.Generator) -> Image8:
    """Return a blurred window [size, size, 3] of the place, its horizon at the given row."""
    if place == "studio":
        return _plain_wall(size, rng)
    strips = panoramas(split)[place]
    strip = strips[rng.integers(len(strips))]
    zoom = rng.uniform(0.45, 0.72)  # picture pixels per strip pixel
    left = rng.uniform(0, strip.shape[1] - size / zoom)
    warp = np.array([[zoom, 0, -left * zoom], [0, zoom, horizon - _STRIP_HORIZON * zoom]], np.float32)
    window = cv2.warpAffine(strip, warp, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.GaussianBlur(window, (0, 0), rng.uniform(0.5, 1.1)), np.uint8)


def _plain_wall(size: int, rng: np.random.Generator) -> Image8:
    hue, saturation, value = rng.uniform(0, 180), rng.uniform(0, 90), rng.uniform(150, 245)
    colour = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(
        np.float32
    )
    y, x = np.mgrid[0:size, 0:size] / size
    glow = 1 - 0.35 * np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0, 0.5))
    return np.clip(colour * glow[..., None], 0, 255).astype(np.uint8)


@cache
def surface_textures(surface: str) -> tuple[Image8, ...]:
    """Return four procedural tiles [256, 256, 3] of a surface, the same on every machine."""
    seed = SURFACES.index(surface)
    return tuple(_texture(surface, np.random.default_rng([77, seed, variant])) for variant in range(4))


def _noise(rng: np.random.Generator, sigma_x: float, sigma_y: float) -> NDArray[np.float32]:
    field = cv2.GaussianBlur(
        rng.standard_normal((256, 256)).astype(np.float32), (0, 0), sigma_x, sigmaY=sigma_y
    )
    return field / field.std()


def _texture(surface: str, rng: np.random.Generator) -> Image8:
    x = np.arange(256)[None, :]
    if surface == "wood":
        base = np.array([150, 98, 56]) * rng.uniform(0.75, 1.2)
        tone = 0.10 * _noise(rng, 2, 40) + 0.05 * _noise(rng, 0.8, 12) - 0.35 * (x % 42 < 2)
    elif surface == "marble":
        base = np.array([232, 230, 228]) * rng.uniform(0.93, 1.02)
        tone = -0.32 * np.exp(
            -((_noise(rng, 12, 12) + 0.3 * _noise(rng, 3, 3)) ** 2) / 0.012
        ) + 0.015 * _noise(rng, 8, 8)
    elif surface == "linen":
        base = np.array([196, 178, 150]) * rng.uniform(0.92, 1.1)
        tone = 0.07 * _noise(rng, 0.8, 9) + 0.07 * _noise(rng, 9, 0.8)
    elif surface == "grass":
        base = np.array([84, 138, 46]) * rng.uniform(0.8, 1.15)
        tone = 0.20 * _noise(rng, 0.8, 2.5) + 0.10 * _noise(rng, 10, 10)
    elif surface == "sand":
        base = np.array([224, 192, 126]) * rng.uniform(0.92, 1.06)
        tone = 0.045 * _noise(rng, 0.7, 0.7) + 0.05 * _noise(rng, 14, 4)
    else:  # slate
        base = np.array([66, 74, 84]) * rng.uniform(0.8, 1.2)
        tone = 0.16 * _noise(rng, 7, 3) + 0.07 * _noise(rng, 0.8, 0.8)
    return np.clip(base * (1 + tone[..., None]), 0, 255).astype(np.uint8)


def ground(surface: str, horizon: int, size: int, rng: np.random.Generator) -> Image8:
    """Return the surface in perspective [size, size, 3], meant to be used from row `horizon` down."""
    tiles = surface_textures(surface)
    tile = tiles[rng.integers(len(tiles))]
    left, top = rng.uniform(0, 60, 2)
    near, far, depth = rng.uniform(60, 80), rng.uniform(130, 180), rng.uniform(100, 150)
    middle = left + far / 2
    corners = np.array(
        [[left, top], [left + far, top], [middle + near / 2, top + depth], [middle - near / 2, top + depth]],
        np.float32,
    )
    target = np.array([[0, horizon], [size, horizon], [size, size], [0, size]], np.float32)
    warp = cv2.getPerspectiveTransform(corners, target)
    seen = cv2.warpPerspective(tile, warp, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(seen, np.uint8)
