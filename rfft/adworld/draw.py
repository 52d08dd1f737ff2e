"""Draw AdWorld to disk in RF1M's form, or as a contact sheet."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from rfft.adworld.scene import SIZE, Scene, draw_scene
from rfft.adworld.styles import SOURCES
from rfft.feedback.folder import CODE_OF_CLASS, LABEL_FILE, PROMPT_FILE
from rfft.types import LABELS
from rfft.utils.atomic_io import new_folder


def scene(seed: int, index: int, source: str, label: str | None = None) -> Scene:
    """Return scene number `index` of a seed and a source (a split, or another of styles.SOURCES).

    It is the same whatever was drawn before it.
    """
    return draw_scene(np.random.default_rng([seed, SOURCES[source].key, index]), source, label)


def draw_dataset(out: Path, count: int, seed: int, split: str = "train", workers: int | None = None) -> None:
    """Write the scenes 0..count-1 of a seed as the new folder `out` in RF1M's form, all or nothing.

    prompts.jsonl also has the attributes that the prompt asks for. `workers` is the number of processes, all
    cores by default.
    """
    with new_folder(out) as draft:
        _draw_into(draft, count, seed, split, workers)


def _draw_into(folder: Path, count: int, seed: int, split: str, workers: int | None) -> None:
    for kind in ("images", "products", "depth", "saliency"):
        (folder / kind).mkdir()
    chunks = [(folder, seed, split, start, min(start + 250, count)) for start in range(0, count, 250)]
    with (
        ProcessPoolExecutor(workers) as pool,
        (folder / LABEL_FILE).open("w", encoding="utf-8") as labels,
        (folder / PROMPT_FILE).open("w", encoding="utf-8") as prompts,
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
    """Write the contact sheet of a split as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_png(path, contact_sheet(seed, split)[..., ::-1])


def contact_sheet(seed: int, split: str, columns: int = 16, zoom: int = 2) -> np.ndarray:
    """Return a picture [H, W, 3] with a row for each class, in the order of LABELS, its name above."""
    cell, bar = SIZE * zoom, 22
    sheet = np.full((len(LABELS) * (cell + bar), columns * cell, 3), 255, np.uint8)
    for row, label in enumerate(LABELS):
        top = row * (cell + bar)
        name, corner, grey = label.replace("_", " "), (6, top + 16), (20, 20, 20)
        cv2.putText(sheet, name, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, grey, 1, cv2.LINE_AA)
        for column in range(columns):
            image = scene(seed, 1000 * row + column, split, label).image
            big = cv2.resize(image, (cell, cell), interpolation=cv2.INTER_NEAREST)
            sheet[top + bar : top + bar + cell, column * cell : (column + 1) * cell] = big
    return sheet
