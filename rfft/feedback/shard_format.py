"""Labelled feedback as WebDataset shards: what lies in a folder of them.

manifest.json            settings, and all shards that are whole with their counts
shard-000000.tar ...     per sample KEY.json (name, label, caption, prompt) and either
    KEY.npy              uint8 [S,S,9]: image RGB, product RGBA, depth, saliency      (raw)
    KEY.image.jpg, KEY.product.png, KEY.depth.png, KEY.saliency.png                   (files; webp too)
broken.jsonl             what was left out, and why

S: the side of pictures that were resized; `files` has them as they were, unless resized, too.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rfft.data.pictures import (
    BrokenFile,
    Mode,
    Pixels,
    decode,
    encode_jpeg,
    encode_png,
    read_header,
    resize,
)
from rfft.errors import UserError
from rfft.feedback.folder import FeedbackPicture
from rfft.types import LABELS
from rfft.utils.atomic_io import new_file

MANIFEST, BROKEN = "manifest.json", "broken.jsonl"
FORMAT = "rfft-feedback-shards-1"
CHANNELS = 9
MODES: dict[str, Mode] = {"image": "RGB", "product": "RGBA", "depth": "L", "saliency": "L"}


@dataclass(frozen=True)
class Feedback:
    """A labelled picture with everything that RFNet looks at."""

    name: str
    label: int  # class, an index into LABELS
    caption: str
    prompt: str
    sample: FeedbackPicture  # with both maps


@dataclass
class Shard:
    """A shard that is whole."""

    file: str
    bytes: int
    samples: int
    broken: int
    labels: dict[str, int]  # name of the class -> samples


@dataclass
class Manifest:
    """What a folder of shards holds."""

    settings: dict[str, Any]
    planned: int  # shards
    left_out: dict[str, int]  # reason -> samples, before the shards
    shards: dict[int, Shard] = field(default_factory=dict)  # by number

    @property
    def complete(self) -> bool:
        """Tell whether all planned shards are there."""
        return len(self.shards) == self.planned

    @property
    def samples(self) -> int:
        """Return the number of samples in all shards."""
        return sum(shard.samples for shard in self.shards.values())

    def labels(self) -> dict[str, int]:
        """Return the number of samples of each class, in the order of LABELS."""
        return {name: sum(shard.labels.get(name, 0) for shard in self.shards.values()) for name in LABELS}

    def all_left_out(self) -> dict[str, int]:
        """Return how many samples were left out, by reason, broken ones found while reading included."""
        broken = self.left_out.get("broken", 0) + sum(shard.broken for shard in self.shards.values())
        return self.left_out | {"broken": broken}

    def save(self, folder: Path) -> None:
        """Write the manifest into the folder, whole or not at all."""
        content = {
            "format": FORMAT,
            "complete": self.complete,
            "samples": self.samples,
            "labels": self.labels(),
            "all_left_out": self.all_left_out(),
            **asdict(replace(self, shards=dict(sorted(self.shards.items())))),
        }
        with new_file(folder / MANIFEST) as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of shards; raises UserError if it is missing or damaged."""
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{file}: written in another form: {content['format']}")
        shards = {int(number): Shard(**shard) for number, shard in content["shards"].items()}
        if any(Path(shard.file).name != shard.file for shard in shards.values()):
            raise UserError(f"{file}: a shard lies outside of its folder")
        return Manifest(content["settings"], content["planned"], content["left_out"], shards)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {MANIFEST}; folders of shards are made by `rfft data`") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: damaged: {error}") from None


def read_complete(folder: Path) -> Manifest:
    """Read a manifest; raises UserError, too, if shards are still to be written."""
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise UserError(
            f"{folder}: {len(manifest.shards)} of {manifest.planned} shards are there; the command that "
            "began it goes on"
        )
    return manifest


def encode_sample(key: str, feedback: Feedback, raw: bool, originals: dict[str, bytes]) -> dict[str, Any]:
    """Return the members of a sample for webdataset's TarWriter: one array if `raw`, files otherwise.

    `originals` are files by names such as image.jpg, which go in as they are.
    """
    about = {
        "name": feedback.name,
        "label": LABELS[feedback.label],
        "caption": feedback.caption,
        "prompt": feedback.prompt,
    }
    members: dict[str, Any] = {"__key__": key, "json": json.dumps(about, ensure_ascii=False).encode()}
    sample = feedback.sample
    assert sample.depth is not None and sample.saliency is not None
    if raw:
        buffer = io.BytesIO()
        np.save(buffer, np.dstack([sample.image, sample.product, sample.depth, sample.saliency]))
        return members | {"npy": buffer.getvalue()}
    kinds = {name.split(".")[0] for name in originals}
    if "image" not in kinds:
        members["image.jpg"] = encode_jpeg(sample.image)
    for kind in {"product", "depth", "saliency"} - kinds:
        members[f"{kind}.png"] = encode_png(getattr(sample, kind))
    return members | originals


def decode_sample(members: dict[str, Any], size: int | None = None) -> Feedback:
    """Return the sample that a shard's members hold, its pictures as squares of `size` pixels or as stored.

    Raises UserError, which names the sample, for damaged members.
    """
    try:
        about = json.loads(members["json"])
        sample = _from_raw(members["npy"], size) if "npy" in members else _from_files(members, size)
        name, label, caption, prompt = (about[key] for key in ("name", "label", "caption", "prompt"))
        if not all(isinstance(text, str) for text in (name, caption, prompt)):
            raise TypeError("name, caption and prompt must be texts")
        return Feedback(name, LABELS.index(label), caption, prompt, sample)
    except (BrokenFile, KeyError, ValueError, TypeError, EOFError, RecursionError) as error:
        place = f"{members.get('__url__')}: sample {members.get('__key__')}"
        raise UserError(f"{place} is damaged: {error!r}") from None


def _from_raw(data: bytes, size: int | None) -> FeedbackPicture:
    pixels = _array(data)
    parts = pixels[..., :3], pixels[..., 3:7], pixels[..., 7], pixels[..., 8]
    return FeedbackPicture(*(resize(part, (size, size)) if size else part for part in parts))


def _array(data: bytes) -> Pixels:
    """Return what np.save wrote, uint8 [H,W,9]; its header is checked before anything is made of it."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(stream)
    promised = dtype == np.uint8 and not columns_first and len(shape) == 3 and shape[2] == CHANNELS
    if not promised or math.prod(shape) != len(data) - stream.tell():
        raise ValueError(f"{dtype} {list(shape)} instead of uint8 [S,S,{CHANNELS}]")
    return np.frombuffer(data, np.uint8, offset=stream.tell()).reshape(shape)


def _from_files(members: dict[str, Any], size: int | None) -> FeedbackPicture:
    files = {name.split(".")[0]: data for name, data in members.items()}
    target = (size, size) if size else None
    return FeedbackPicture(*(decode(read_header(files[kind]), mode, target) for kind, mode in MODES.items()))
