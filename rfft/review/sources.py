"""Pictures to ask people about: generated ones, a run's, labelled feedback, or those of a plain folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
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
STATES = ("base", "tuned")


def read_pictures(source: Path, kept: Path) -> list[Picture]:
    """Return the pictures of a folder of any of these kinds.

    A run's pictures lie in sheets and are written singly below the folder `kept`. Raises UserError for a
    folder without pictures.
    """
    for name, read in READERS.items():
        if (source / name).is_file():
            found = list(read(source, kept))
            break
    else:
        found = list(_plain(source))
    if not found:
        raise UserError(
            f"{source}: no pictures; give a folder of PNG, JPEG or WebP files, what `rfft generate` wrote, "
            "labelled feedback, or the folder of a run"
        )
    return list({picture.id: picture for picture in found}.values())


def _generated(source: Path, kept: Path) -> Iterator[Picture]:
    lines = (source / MANIFEST).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(filter(None, lines), start=1):
        where = f"{source / MANIFEST}:{number}"
        try:
            row = json.loads(line)
            path, product = (inside(source, row[name], where) for name in ("image", "product"))
            texts = {name: str(row[name]) for name in ("caption", "prompt")}
            given = row["probabilities"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{where}: damaged; give a folder that `rfft generate` wrote") from None
        group = _group(texts["caption"], texts["prompt"])
        yield _picture(
            path, source, product=product, group=group, place=f"{row['id']}", probabilities=given, **texts
        )


def _run(source: Path, kept: Path) -> Iterator[Picture]:
    """Yield a run's pictures, before and after training as sources of their own."""
    known = store.read_json(source / store.EVALUATION)
    for state in (name for name in STATES if name in known):
        sheets = store.pictures(source, state)
        verdicts = known[state].get("probabilities", {}).get("rfnet") or [None] * len(sheets)
        folder = (
            kept / f"{source.name}-{hashlib.sha256(str(source.absolute()).encode()).hexdigest()[:8]}-{state}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        for number, cell in enumerate(known["cells"]):
            path = folder / f"{number:06}.png"
            if not path.exists():
                contact_sheet.save_png(path, sheets[number].permute(1, 2, 0).numpy())
            given = verdicts[number] and dict(zip(LABELS, verdicts[number], strict=True))
            texts = {"caption": str(cell.get("caption", cell["product"])), "prompt": str(cell["prompt"])}
            group, place = _group(cell["product"], cell["prompt"]), f"{cell['product']}/{number}"
            picture = _picture(path, source, group=group, place=place, probabilities=given, **texts)
            yield _named(picture, f"{source.name}/{state}")


def _labelled(source: Path, kept: Path) -> Iterator[Picture]:
    """Yield the pictures of a folder in RF1M's form: their labels are known, so they are gold."""
    for record in read_feedback(source):
        product = source / "products" / f"{Path(record.name).stem}.png"
        texts = {"caption": record.caption, "prompt": record.prompt}
        path, group = (
            inside(source, f"images/{record.name}", str(source / LABEL_FILE)),
            _group(*texts.values()),
        )
        yield _picture(path, source, product=product, group=group, label=LABELS[record.label], **texts)


def _plain(source: Path) -> Iterator[Picture]:
    """Yield all pictures below a folder; those of one subfolder are a group."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = str(path.relative_to(source))
            yield _picture(inside(source, name, str(source)), source, group=str(path.parent), place=name)


READERS: dict[str, Callable[[Path, Path], Iterator[Picture]]] = {
    MANIFEST: _generated,
    store.EVALUATION: _run,
    LABEL_FILE: _labelled,
}


def _picture(path: Path, source: Path, **known: Any) -> Picture:
    digest = hashlib.sha256(path.read_bytes() + source.name.encode()).hexdigest()[:32]
    return Picture(id=digest, path=path, source=source.name, **known)


def _named(picture: Picture, source: str) -> Picture:
    digest = hashlib.sha256(f"{picture.id} {source}".encode()).hexdigest()[:32]
    return Picture(**vars(picture) | {"id": digest, "source": source})


def _group(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
