"""Pictures to ask people about: generated ones, a run's, labelled feedback, or those of a plain folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfft.data.paths import inside
from rfft.data.pictures import EXTENSIONS
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.feedback.folder import LABEL_FILE, read_feedback
from rfft.feedback.votes import Picture
from rfft.generation.generated import MANIFEST
from rfft.types import LABELS
from rfft.utils import contact_sheet

SUFFIXES = {f".{name}" for name in (*EXTENSIONS.values(), "jpeg")}


def read_pictures(source: Path, kept: Path, states: Sequence[str] = store.STATES) -> list[Picture]:
    """Return the pictures of a folder of any of these kinds.

    Those of a run's given states lie in sheets and are written singly below the folder `kept`. Raises
    UserError for a folder without pictures.
    """
    source = source.resolve()
    if (source / store.EVALUATION).is_file():
        found = list(_run(source, kept, states))
    else:
        read = next((read for name, read in READERS.items() if (source / name).is_file()), _plain)
        found = list(read(source))
    if not found:
        raise UserError(
            f"{source}: no pictures; give a folder of PNG, JPEG or WebP files, what `rfft generate` wrote, "
            "labelled feedback, or the folder of a run"
        )
    return list({picture.id: picture for picture in found}.values())


def _generated(source: Path) -> Iterator[Picture]:
    lines = (source / MANIFEST).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(filter(None, lines), start=1):
        where = f"{source / MANIFEST}:{number}"
        try:
            row = json.loads(line)
            path, product = (inside(source, row[name], where) for name in ("image", "product"))
            texts = {name: str(row[name]) for name in ("caption", "prompt")}
            given, place = row["probabilities"], _group(str(row["id"]), texts["prompt"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{where}: damaged; give a folder that `rfft generate` wrote") from None
        group = _group(texts["caption"], texts["prompt"])
        known = {"group": group, "place": place, "probabilities": given}
        yield _picture(path, source, product=product, **known, **texts)


def _run(source: Path, kept: Path, states: Sequence[str]) -> Iterator[Picture]:
    """Yield a run's pictures, before and after training as sources of their own."""
    known = store.read_json(source / store.EVALUATION)
    for state in (name for name in states if name in known):
        sheets = store.pictures(source, state)
        verdicts = known[state].get("probabilities", {}).get("rfnet") or [None] * len(sheets)
        folder = kept / f"{source.name}-{_group(str(source))}-{state}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, cell in enumerate(known["cells"]):
            path = folder / f"{number:06}.png"
            contact_sheet.save_png(path, sheets[number].permute(1, 2, 0).numpy())
            given = verdicts[number] and dict(zip(LABELS, verdicts[number], strict=True))
            texts = {"caption": str(cell.get("caption", cell["product"])), "prompt": str(cell["prompt"])}
            group = _group(cell["product"], cell["prompt"])
            picture = _picture(path, source, group=group, place=place_of(cell), probabilities=given, **texts)
            yield _named(picture, f"{source.name}/{state}")


def place_of(cell: Mapping[str, Any]) -> str:
    """Return the place of a picture in the grid of a run's evaluation: the same for all runs on that grid."""
    return _group(cell["product"], cell["prompt"], str(cell["seed"]))


def _labelled(source: Path) -> Iterator[Picture]:
    """Yield the pictures of a folder in RF1M's form: their labels are known, so they are gold."""
    for record in read_feedback(source):
        names = (f"images/{record.name}", f"products/{Path(record.name).stem}.png")
        path, product = (inside(source, name, str(source / LABEL_FILE)) for name in names)
        texts = {"caption": record.caption, "prompt": record.prompt}
        known = {"group": _group(*texts.values()), "label": LABELS[record.label]}
        yield _picture(path, source, product=product, **known, **texts)


def _plain(source: Path) -> Iterator[Picture]:
    """Yield all pictures below a folder; those of one subfolder are a group."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = str(path.relative_to(source))
            yield _picture(inside(source, name, str(source)), source, group=str(path.parent), place=name)


READERS: dict[str, Callable[[Path], Iterator[Picture]]] = {MANIFEST: _generated, LABEL_FILE: _labelled}


def _picture(path: Path, source: Path, **known: Any) -> Picture:
    for file in filter(None, (path, known.get("product"))):
        if file.suffix.lower() not in SUFFIXES:
            raise UserError(f"{file}: a browser is shown PNG, JPEG and WebP files alone; convert it")
    digest = hashlib.sha256(path.read_bytes() + source.name.encode()).hexdigest()[:32]
    return Picture(id=digest, path=path, source=source.name, **known)


def _named(picture: Picture, source: str) -> Picture:
    digest = hashlib.sha256(f"{picture.id} {source}".encode()).hexdigest()[:32]
    return Picture(**vars(picture) | {"id": digest, "source": source})


def _group(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
