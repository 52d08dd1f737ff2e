"""Human feedback in RF1M's form: generated images, each with product, caption and an inspector's label.

label.txt              name <tab> label <tab> caption, a line per image; label 1 to 6 as below
images/NAME            the generated picture, RGB
products/STEM.png      the product as placed in it, RGBA
depth/, saliency/      optional: known maps STEM.png, 8-bit grey
prompts.jsonl          optional: {"id": STEM, "prompt": ...}
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rfft.data.pictures import BrokenFile, decode, read_header
from rfft.errors import UserError
from rfft.types import LABELS

Pixels = NDArray[np.uint8]

UNSUITABLE = 2  # the product photo itself is broken: left out
CODE_OF_CLASS = (1, 3, 4, 5, 6)  # RF1M's label of each class, in the order of LABELS
CLASS_OF_CODE = {str(code): label for label, code in enumerate(CODE_OF_CLASS)}
LONGEST_NAME = 250  # bytes; what file systems take
LABEL_FILE, PROMPT_FILE = "label.txt", "prompts.jsonl"


@dataclass(frozen=True)
class FeedbackPicture:
    """A labelled picture as uint8 arrays of one height H and width W."""

    image: Pixels  # [H,W,3]
    product: Pixels  # [H,W,4] RGBA, straight alpha
    depth: Pixels | None  # [H,W]
    saliency: Pixels | None  # [H,W]


@dataclass(frozen=True)
class Record:
    """A labelled picture, such as a line of the label file; its files are read by `load`."""

    folder: Path
    name: str
    label: int  # class, an index into LABELS
    caption: str
    prompt: str = ""
    target: tuple[float, ...] | None = None  # what people said, a share for each class; None: all the label
    weight: float = 1.0  # in the loss

    def files(self) -> tuple[Path, Path]:
        """Return where the picture and its product lie."""
        stem = Path(self.name).stem
        return self.folder / "images" / self.name, self.folder / "products" / f"{stem}.png"

    def load(self) -> FeedbackPicture:
        """Read the pictures; raises UserError for a file that is missing, broken or of another size."""
        picture_file, product_file = self.files()
        image = read_picture(picture_file, cv2.IMREAD_COLOR_RGB)
        product = _read_product(product_file)
        if product.shape[:2] != image.shape[:2]:
            raise UserError(f"{self.folder}: image and product of {self.name} differ in size")
        return FeedbackPicture(image, product, self._map("depth"), self._map("saliency"))

    def map_file(self, kind: str) -> Path:
        """Return where a map that comes with the data would lie; `kind` is depth or saliency."""
        return self.folder / kind / f"{Path(self.name).stem}.png"

    def _map(self, kind: str) -> Pixels | None:
        path = self.map_file(kind)
        return read_picture(path, cv2.IMREAD_GRAYSCALE) if path.exists() else None


def read_feedback(folder: str | Path) -> list[Record]:
    """Return all suitable records of a folder, in the order of its label file.

    Raises UserError, which names the line, for a mistake in the label file, and if there is no usable record.
    """
    folder = Path(folder)
    label_file = folder / LABEL_FILE
    prompts = _prompts(folder / PROMPT_FILE)
    names: dict[str, str] = {}  # by stem: it finds product, maps and prompt
    records: list[Record] = []
    for place, line in _lines(label_file):
        name, label, caption = _columns(line, place)
        stem = Path(name).stem
        if names.get(stem) == name:
            raise UserError(f"{place}: {name} occurs twice")
        if other := names.get(stem):
            raise UserError(f"{place}: {name} and {other} have one product and the same maps: rename one")
        names[stem] = name
        if label is not None:
            records.append(Record(folder, name, label, caption, prompts.get(stem, "")))
    if not records:
        raise UserError(f"{label_file}: no usable record")
    return records


def _columns(line: str, place: str) -> tuple[str, int | None, str]:
    """Return name, class (None: unsuitable) and caption of a line of the label file."""
    columns = line.split("\t")
    if len(columns) != 3:
        raise UserError(
            f"{place}: {len(columns)} columns; expected name, label and caption, separated by tabs"
        )
    name, code, caption = (column.strip() for column in columns)
    if Path(name).name != name or name in ("", "..") or "\0" in name or len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{place}: {name!r} is no plain file name")
    label = class_of(code, place)
    if label is not None and not caption:
        raise UserError(f"{place}: {name} has no caption")
    return name, label, caption


@dataclass(frozen=True)
class LabelledFile:
    """A picture and its product as files anywhere, to become a line of a label file."""

    name: str  # of the picture in the folder
    code: int  # RF1M's
    caption: str
    prompt: str
    image: Path
    product: Path


def write_feedback(folder: Path, files: Iterable[LabelledFile]) -> None:
    """Copy labelled pictures into a folder in RF1M's form, which has nothing of it yet."""
    for kind in ("images", "products"):
        (folder / kind).mkdir(parents=True)
    with (
        (folder / LABEL_FILE).open("w", encoding="utf-8") as labels,
        (folder / PROMPT_FILE).open("w", encoding="utf-8") as prompts,
    ):
        for file in files:
            stem = Path(file.name).stem
            shutil.copyfile(file.image, folder / "images" / file.name)
            shutil.copyfile(file.product, folder / "products" / f"{stem}.png")
            labels.write(f"{file.name}\t{file.code}\t{' '.join(file.caption.split())}\n")
            prompts.write(json.dumps({"id": stem, "prompt": file.prompt}, ensure_ascii=False) + "\n")


def code_of(answer: str) -> int:
    """Return RF1M's code of a class by name, or of `unsuitable`."""
    return UNSUITABLE if answer == "unsuitable" else CODE_OF_CLASS[LABELS.index(answer)]


def class_of(code: str, place: str) -> int | None:
    """Return the class of an inspector's label, an index into LABELS, or None for `unsuitable`."""
    if code == str(UNSUITABLE):
        return None
    if code not in CLASS_OF_CODE:
        legend = ", ".join(f"{known} {LABELS[label]}" for known, label in CLASS_OF_CODE.items())
        raise UserError(f"{place}: label {code!r} is none of {legend}, {UNSUITABLE} unsuitable")
    return CLASS_OF_CODE[code]


def _prompts(file: Path) -> dict[str, str]:
    prompts = {}
    for place, line in _lines(file) if file.is_file() else ():
        try:
            row = json.loads(line)
            prompts[str(row["id"])] = str(row["prompt"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{place}: expected a JSON object with id and prompt") from None
    return prompts


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield place (file:line) and text of every line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", line


def read_picture(path: Path, flags: int) -> Pixels:
    """Read a picture with the flags of cv2.imread; raises UserError if it is missing or broken.

    Nothing is decoded before its size is known to be sane.
    """
    try:
        data = path.read_bytes()
        read_header(data)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except BrokenFile as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, cv2.error):
        picture = None
    if picture is None:
        raise UserError(f"{path}: missing or not a readable image")
    return picture.astype(np.uint8, copy=False)


def _read_product(path: Path) -> Pixels:
    try:
        return decode(read_header(path.read_bytes()), "RGBA")
    except BrokenFile as error:
        raise UserError(f"{path}: {error}") from None
    except OSError:
        raise UserError(f"{path}: missing or not a readable image") from None
