"""Draw AdWorld to disk in RF1M's form, or as a contact sheet, or as an endless stream for training."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from rfft.adworld.assets import RESIZED
from rfft.adworld.scene import SIZE, Scene, draw_scene
from rfft.data.feedback import CODE_OF_CLASS, LABEL_FILE, PROMPT_FILE
from rfft.types import LABELS

_SPLIT_KEY = {"train": 0, "val": 1, "test": 2, RESIZED: 3}


def scene(seed: int, index: int, split: str, label: str | None = None) -> Scene:
    """Scene number `index` of a seed: the same whatever was drawn before it."""
    return draw_scene(np.random.default_rng([seed, _SPLIT_KEY[split], index]), split, label)


def draw_dataset(out: Path, count: int, seed: int, split: str = "train", workers: int | None = None) -> None:
    """Write scenes 0..count-1 under `out` in RF1M's form (see data/feedback.py).

    prompts.jsonl also has the attributes that the prompt asks for. `workers`: processes, default all cores.
    """
    for folder in ("images", "products", "depth", "saliency"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    chunks = [(out, seed, split, start, min(start + 250, count)) for start in range(0, count, 250)]
    with (
        ProcessPoolExecutor(workers) as pool,
        (out / LABEL_FILE).open("w", encoding="utf-8") as labels,
        (out / PROMPT_FILE).open("w", encoding="utf-8") as prompts,
    ):
        for rows in track(pool.map(_write_chunk, chunks), "drawing", total=len(chunks)):
            for label_row, prompt_row in rows:
                labels.write(label_row)
                prompts.write(prompt_row)


def _write_chunk(chunk: tuple[Path, int, str, int, int]) -> list[tuple[str, str]]:
    out, seed, split, start, stop = chunk
    rows = []
    for index in range(start, stop):
        drawn, name = scene(seed, index, split), f"{index:07d}"
        _write_png(out / "images" / f"{name}.png", drawn.image[..., ::-1])
        _write_png(out / "products" / f"{name}.png", drawn.product[..., [2, 1, 0, 3]])
        _write_png(out / "depth" / f"{name}.png", drawn.depth)
        _write_png(out / "saliency" / f"{name}.png", drawn.saliency)
        extra = {"id": name, "prompt": drawn.prompt, "attributes": drawn.attributes}
        rows.append(
            (
                f"{name}.png\t{CODE_OF_CLASS[LABELS.index(drawn.label)]}\t{drawn.caption}\n",
                json.dumps(extra) + "\n",
            )
        )
    return rows


def _write_png(path: Path, image: np.ndarray) -> None:
    ok, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert ok
    path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite this raises when the disk is full


def write_sheet(path: Path, seed: int, split: str) -> None:
    """The contact sheet as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_png(path, contact_sheet(seed, split)[..., ::-1])


def contact_sheet(seed: int, split: str, columns: int = 12, zoom: int = 2) -> np.ndarray:
    """A picture [H, W, 3] with two rows for each class, in the order of LABELS, and its name above them."""
    cell, bar = SIZE * zoom, 22
    sheet = np.full((len(LABELS) * (2 * cell + bar), columns * cell, 3), 255, np.uint8)
    for number, label in enumerate(LABELS):
        top = number * (2 * cell + bar)
        cv2.putText(
            sheet,
            label.replace("_", " "),
            (6, top + 16),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5,
            (20, 20, 20),
            1,
            cv2.LINE_AA,
        )
        for i in range(2 * columns):
            image = scene(seed, 1000 * number + i, split, label).image
            big = cv2.resize(image, (cell, cell), interpolation=cv2.INTER_NEAREST)
            y, x = top + bar + (i // columns) * cell, (i % columns) * cell
            sheet[y : y + cell, x : x + cell] = big
    return sheet
