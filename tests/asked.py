"""Pictures to ask people about, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rfft.types import LABELS

SIDE = 32


def picture(path: Path, seed: int, mode: str = "RGB") -> None:
    """Write a picture that no other seed has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (SIDE, SIDE, len(mode))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(path)


def plain(folder: Path, count: int) -> Path:
    """Write a folder of pictures of which nothing is known."""
    for number in range(count):
        picture(folder / f"{number:03}.png", number)
    return folder


def generated(folder: Path, count: int, first: int = 0, caption: str = "cup", prompt: str = "on oak") -> Path:
    """Write what `rfft generate` leaves: two pictures for each product and prompt."""
    rows = []
    for number in range(count):
        name = f"{number:07}.png"
        picture(folder / "images" / name, first + number)
        picture(folder / "products" / name, 10_000 + number, "RGBA")
        likely = number % len(LABELS)
        rows.append(
            {
                "id": f"{number:07}",
                "image": f"images/{name}",
                "product": f"products/{name}",
                "caption": f"{caption} {number // 2}",
                "prompt": prompt,
                "negative_prompt": "",
                "seed": number,
                "attempts": 1,
                "accepted": likely == 0,
                "probabilities": {label: 0.6 if i == likely else 0.1 for i, label in enumerate(LABELS)},
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
