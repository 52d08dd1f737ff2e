"""Many scenes in memory: drawn once with all cores, kept in a cache folder, read back as arrays."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.adworld.assets import LIGHTS, PLACES, PROP_NAMES, SURFACES
from rfft.adworld.draw import scene
from rfft.types import LABELS
from rfft.utils.atomic_io import new_file

ATTRIBUTES = {"surface": SURFACES, "place": PLACES, "prop": PROP_NAMES, "light": LIGHTS}
IGNORED = -100  # the class number of an attribute without a class, which torch's cross-entropy leaves out
_VERSION = 7  # to be raised when the drawing changes, so that no stale cache is read
_PIXELS = ("image", "product", "depth", "saliency")
_TEXTS = ("captions", "prompts", "styles")
_ARRAYS = (*_PIXELS, "label", "attributes", "prop_cm")


@dataclass
class Scenes:
    """N scenes as arrays.

    image [N, 64, 64, 3], product [N, 64, 64, 4], depth and saliency [N, 64, 64] are uint8; label [N] and
    attributes [N, 4] (in the order of ATTRIBUTES) are class numbers; prop_cm [N] is the true height of what
    stands beside the product, 0 if nothing does. styles has for each scene how it was drawn.
    """

    image: NDArray[np.uint8]
    product: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    saliency: NDArray[np.uint8]
    label: NDArray[np.int64]
    attributes: NDArray[np.int64]
    prop_cm: NDArray[np.float64]
    captions: list[str]
    prompts: list[str]
    styles: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.label)

    def pixels(self, field: str, index: NDArray[np.int64]) -> Tensor:
        """Return the image, product, depth or saliency of some scenes as floats [B, C, 64, 64] in [0, 1]."""
        array = getattr(self, field)[index]
        array = array[..., None] if array.ndim == 3 else array
        return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 255


def cache_folder() -> Path:
    """Return where scenes, and what is made of them, are kept for the next time."""
    root = Path(os.environ.get("RFFT_CACHE", Path.home() / ".cache" / "rfft"))
    return root / f"v{_VERSION}"


def load_scenes(split: str, count: int, seed: int) -> Scenes:
    """Return the scenes 0..count-1 of a source (`split`, see styles.SOURCES) and seed.

    They are drawn only once, and memory-mapped.
    """
    folder = cache_folder() / f"scenes-{split}-{count}-{seed}"
    if not (folder / "text.json").exists():
        _draw_to(folder, split, count, seed)
    text = json.loads((folder / "text.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Scenes(**arrays, **text)


def _draw_to(folder: Path, split: str, count: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(split, seed, start, min(start + 500, count)) for start in range(0, count, 500)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(_draw_chunk, tasks))
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", np.concatenate([part[name] for part in parts]))
    text = {name: [line for part in parts for line in part[name]] for name in _TEXTS}
    with new_file(folder / "text.json") as file:  # last: says that all is there
        file.write(json.dumps(text).encode())


def _draw_chunk(task: tuple[str, int, int, int]) -> dict:
    split, seed, start, stop = task
    drawn = [scene(seed, index, split) for index in range(start, stop)]
    out: dict = {name: np.stack([getattr(s, name) for s in drawn]) for name in _PIXELS}
    out["label"] = np.array([LABELS.index(s.label) for s in drawn])
    out["attributes"] = np.array([[_class(k, s.attributes[k]) for k in ATTRIBUTES] for s in drawn])
    out["prop_cm"] = np.array([s.prop_cm for s in drawn])
    out["captions"], out["prompts"] = [s.caption for s in drawn], [s.prompt for s in drawn]
    out["styles"] = [s.style for s in drawn]
    return out


def _class(attribute: str, value: str) -> int:
    classes = ATTRIBUTES[attribute]
    return classes.index(value) if value in classes else IGNORED
