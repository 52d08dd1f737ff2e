"""What raters are told: a word on each answer, with an example where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rfft.adworld.draw import scene
from rfft.data.pictures import encode_png
from rfft.errors import UserError
from rfft.feedback.votes import ANSWERS, UNSUITABLE
from rfft.review.sources import SUFFIXES
from rfft.types import LABELS

MEANING: Mapping[str, str] = {
    "available": "The product stands where it could stand, at a believable size, and can be seen well.",
    UNSUITABLE: "The product photo itself is broken: cut off, blurred, or not a product at all.",
    "space_mismatch": "The product floats, or stands on nothing that could carry it.",
    "size_mismatch": "The product, or what stands beside it, is far too large or too small.",
    "indistinctiveness": "The product drowns: it has the background's colour, or clutter around it hides it.",
    "shape_hallucination": "Something grew on the product that is not its own: legs, a pedestal, a handle.",
    "pairs": "Which would you rather publish? The loser is replaced by another picture of the product.",
    "gsb": "Compare the two pictures in each respect. Nobody knows which side is whose.",
    "scores": "5 publish at once, 4 small flaws, 3 usable if need be, 2 a flaw that all see, 1 useless.",
}
ZOOM, EXAMPLE = 3, 7  # of AdWorld's example scenes, and their number


@dataclass(frozen=True)
class Entry:
    """A word of the guide; `picture` are an example's PNG, JPEG or WebP bytes."""

    name: str
    text: str
    picture: bytes | None = None


def read_guide(task: str, folder: Path | None) -> list[Entry]:
    """Return the guide of a task, with examples drawn by AdWorld or from a folder.

    The folder has pictures named by what they are an example of (available.png), and texts beside them
    (available.txt). Raises UserError for another name.
    """
    names = ANSWERS if task == "labels" else (task,)
    if folder is not None:
        return _own(folder, names)
    return [Entry(name, MEANING[name], _example(name) if name in LABELS else None) for name in names]


def _example(label: str) -> bytes:
    picture = scene(0, EXAMPLE, "val", label).image
    return encode_png(picture.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1))


def _own(folder: Path, names: tuple[str, ...]) -> list[Entry]:
    if not folder.is_dir():
        raise UserError(f"--guide {folder}: no such folder; name its pictures {', '.join(names)}")
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    if strange := sorted(pictures.keys() - set(MEANING)):
        raise UserError(f"--guide {folder}: {strange[0]} is no answer; name pictures {', '.join(names)}")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    return [
        Entry(name, texts.get(name, MEANING[name]), pictures[name].read_bytes() if name in pictures else None)
        for name in names
    ]
